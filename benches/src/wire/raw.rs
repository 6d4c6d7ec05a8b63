//! Bytes over TCP, and nothing else: what the others are measured against.

use std::io::{Read as _, Result, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

/// Written and read at a time.
const PIECE_BYTES: usize = 1 << 20;

/// Serves on a thread: as many bytes as a connection asks for, from memory that holds `bytes`.
pub(super) fn serve(host: IpAddr, bytes: u64) -> Result<SocketAddr> {
    let listener = TcpListener::bind((host, 0))?;
    let address = listener.local_addr()?;
    // Not zeros: those would all be the same page.
    let memory: Arc<Vec<u8>> = Arc::new((0..bytes.max(1)).map(|at| at as u8).collect());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let memory = Arc::clone(&memory);
            // Ends with the connection.
            std::thread::spawn(move || answer(stream, &memory));
        }
    });
    Ok(address)
}

fn answer(mut stream: TcpStream, memory: &[u8]) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut asked = [0; 8];
    loop {
        stream.read_exact(&mut asked)?;
        let mut left = u64::from_le_bytes(asked) as usize;
        while left > 0 {
            for piece in memory[..left.min(memory.len())].chunks(PIECE_BYTES) {
                stream.write_all(piece)?;
                left -= piece.len();
            }
        }
    }
}

/// A connection and what is read into.
#[derive(Clone)]
pub(super) struct Connection(Arc<Mutex<(TcpStream, Vec<u8>)>>);

impl Connection {
    pub(super) fn open(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Ok(Self(Arc::new(Mutex::new((stream, vec![0; PIECE_BYTES])))))
    }

    /// Asks for so many bytes, and reads them.
    pub(super) fn read(&self, bytes: u64) -> Result<()> {
        let mut connection = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (stream, piece) = &mut *connection;
        stream.write_all(&bytes.to_le_bytes())?;
        let mut left = bytes as usize;
        while left > 0 {
            let room = piece.len().min(left);
            match stream.read(&mut piece[..room])? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                read => left -= read,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_bytes_come_as_are_asked_for() {
        let address = serve([127, 0, 0, 1].into(), 100).unwrap();
        let connection = Connection::open(&address.to_string()).unwrap();
        for bytes in [0, 1, 100, 1_000] {
            connection.read(bytes).unwrap();
        }
        // None were too many.
        let (stream, piece) = &mut *connection.0.lock().unwrap();
        stream.set_nonblocking(true).unwrap();
        assert_eq!(stream.read(piece).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }
}
