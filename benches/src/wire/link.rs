//! Two network namespaces, one for each end, joined by a pair of virtual interfaces that let no more than a rate through.

use std::path::Path;
use std::process::Command;

/// Which namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Server,
    Client,
}

/// The link. It goes when it is dropped.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) rate: String,
    /// The server's, the client's.
    namespaces: [String; 2],
}

impl Link {
    /// The server's address.
    pub(super) const HOST: &str = "10.203.77.1";

    /// Makes the namespaces, if this process may.
    pub(super) fn up(rate: &str) -> Result<Self, String> {
        let name = |end| format!("fcwire{}{end}", std::process::id());
        let link = Self { rate: rate.to_owned(), namespaces: [name("s"), name("c")] };
        let [server, client] = &link.namespaces;
        ip(&["netns", "add", server])?;
        ip(&["netns", "add", client])?;
        ip(&["-n", server, "link", "add", "eth0", "mtu", "9000", "type", "veth", "peer", "name", "eth0", "netns", client])?;
        for (namespace, address) in [(server, "10.203.77.1/24"), (client, "10.203.77.2/24")] {
            ip(&["-n", namespace, "addr", "add", address, "dev", "eth0"])?;
            for device in ["lo", "eth0"] {
                ip(&["-n", namespace, "link", "set", device, "mtu", "9000", "up"])?;
            }
            run("tc", &["-n", namespace, "qdisc", "add", "dev", "eth0", "root", "handle", "1:", "htb", "default", "1"])?;
            let class = ["-n", namespace, "class", "add", "dev", "eth0", "parent", "1:", "classid", "1:1", "htb"];
            run("tc", &[&class[..], &["rate", rate, "burst", "256kb", "cburst", "256kb", "quantum", "60000"]].concat())?;
        }
        Ok(link)
    }

    /// A command at one end of a link, if there is one. `ip` becomes the program, so that it has the process's number.
    pub(super) fn command(link: Option<&Self>, end: End, program: &Path) -> Command {
        let Some(link) = link else { return Command::new(program) };
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &link.namespaces[usize::from(end == End::Client)]]).arg(program);
        command
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        for namespace in &self.namespaces {
            // It may never have been made.
            let _ = ip(&["netns", "del", namespace]);
        }
    }
}

fn ip(words: &[&str]) -> Result<(), String> {
    run("ip", words)
}

fn run(program: &str, words: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(words).output().map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program} {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}
