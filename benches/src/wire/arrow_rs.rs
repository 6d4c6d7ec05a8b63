//! A Flight server as arrow-rs makes them: tonic's, with `FlightDataEncoder` over batches in memory.

use std::collections::HashMap;
use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray as _, RecordBatch, UInt64Array};
use arrow::compute::take;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::reader::FileReader;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo, HandshakeRequest, HandshakeResponse, PollInfo,
    PutResult, SchemaResult, Ticket,
};
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

type Answer<T> = Result<Response<T>, Status>;
type Answers<T> = BoxStream<'static, Result<T, Status>>;

/// Behind a ticket: messages of 1 MiB, instead of the default's 2.
pub(super) const SMALLER: &str = "/1MiB";

/// Tables by their file's name.
struct Tables(HashMap<String, (SchemaRef, Arc<Vec<RecordBatch>>)>);

/// Serves Arrow IPC files, each by its name without what follows the dot.
pub(super) fn serve(host: IpAddr, files: &[PathBuf]) -> Result<SocketAddr, Box<dyn std::error::Error>> {
    let mut tables = HashMap::new();
    for path in files {
        let name = path.file_stem().and_then(|name| name.to_str()).ok_or("a file without a name")?;
        let reader = FileReader::try_new_buffered(File::open(path)?, None)?;
        let (schema, batches) = (reader.schema(), reader.map(|batch| own(&batch?)).collect::<Result<Vec<_>, _>>()?);
        tables.insert(name.to_owned(), (schema, Arc::new(batches)));
    }
    let incoming = TcpIncoming::bind((host, 0).into())?.with_nodelay(Some(true));
    let address = incoming.local_addr()?;
    let server = Server::builder().add_service(FlightServiceServer::new(Tables(tables)));
    tokio::spawn(server.serve_with_incoming(incoming));
    Ok(address)
}

/// A batch whose arrays have their memory to themselves, as those of a server that decoded or computed them. The encoder cuts
/// batches by what their buffers' allocations take: of slices of one block, read from a file, each would count for all of it.
fn own(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let rows = UInt64Array::from_iter_values(0..batch.num_rows() as u64);
    let own = |array: &ArrayRef| -> Result<ArrayRef, ArrowError> {
        let array = take(array, &rows, None)?;
        Ok(match array.data_type() {
            DataType::Utf8View => Arc::new(array.as_string_view().gc()),
            DataType::BinaryView => Arc::new(array.as_binary_view().gc()),
            _ => array,
        })
    };
    RecordBatch::try_new(batch.schema(), batch.columns().iter().map(own).collect::<Result<_, _>>()?)
}

fn none<T>() -> Answer<T> {
    Err(Status::unimplemented("tables are served, nothing else"))
}

#[tonic::async_trait]
impl FlightService for Tables {
    type HandshakeStream = Answers<HandshakeResponse>;
    type ListFlightsStream = Answers<FlightInfo>;
    type DoGetStream = Answers<FlightData>;
    type DoPutStream = Answers<PutResult>;
    type DoExchangeStream = Answers<FlightData>;
    type DoActionStream = Answers<arrow_flight::Result>;
    type ListActionsStream = Answers<ActionType>;

    async fn do_get(&self, request: Request<Ticket>) -> Answer<Self::DoGetStream> {
        let ticket = request.into_inner().ticket;
        let ticket = std::str::from_utf8(&ticket).map_err(|_| Status::invalid_argument("a ticket is text"))?;
        let (name, is_smaller) = ticket.strip_suffix(SMALLER).map_or((ticket, false), |name| (name, true));
        let (schema, batches) = self.0.get(name).ok_or_else(|| Status::not_found(format!("no table {name}")))?;
        let (batches, count) = (Arc::clone(batches), batches.len());
        let batches = futures::stream::iter((0..count).map(move |at| Ok(batches[at].clone())));
        let mut encoder = FlightDataEncoderBuilder::new().with_schema(Arc::clone(schema));
        if is_smaller {
            encoder = encoder.with_max_flight_data_size(1 << 20);
        }
        Ok(Response::new(encoder.build(batches).map_err(Into::into).boxed()))
    }

    async fn handshake(&self, _: Request<Streaming<HandshakeRequest>>) -> Answer<Self::HandshakeStream> {
        none()
    }

    async fn list_flights(&self, _: Request<Criteria>) -> Answer<Self::ListFlightsStream> {
        none()
    }

    async fn get_flight_info(&self, _: Request<FlightDescriptor>) -> Answer<FlightInfo> {
        none()
    }

    async fn poll_flight_info(&self, _: Request<FlightDescriptor>) -> Answer<PollInfo> {
        none()
    }

    async fn get_schema(&self, _: Request<FlightDescriptor>) -> Answer<SchemaResult> {
        none()
    }

    async fn do_put(&self, _: Request<Streaming<FlightData>>) -> Answer<Self::DoPutStream> {
        none()
    }

    async fn do_exchange(&self, _: Request<Streaming<FlightData>>) -> Answer<Self::DoExchangeStream> {
        none()
    }

    async fn do_action(&self, _: Request<Action>) -> Answer<Self::DoActionStream> {
        none()
    }

    async fn list_actions(&self, _: Request<Empty>) -> Answer<Self::ListActionsStream> {
        none()
    }
}
