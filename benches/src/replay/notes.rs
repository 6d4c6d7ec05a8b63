//! What a reader must know to judge the numbers.

use super::plan::{Schedule, Servers};
use super::side::Clients;
use super::{Options, SideKind};

impl Options {
    /// A paragraph each, of those that apply.
    pub(super) fn notes(&self, schedules: &[Schedule]) -> Vec<String> {
        let mut notes = vec![self.setting(), self.requests()];
        notes.extend(self.sides().into_iter().map(|side| self.side(side)));
        notes.extend(schedules.iter().filter(|schedule| schedule.partial > 0).map(partial));
        notes
    }

    fn setting(&self) -> String {
        let machines = match self.servers {
            Servers::Own(_) => "All sides share this machine's cores.",
            Servers::Running(_) => {
                "Flightcache's servers are processes of their own, wherever they run; everything else is in this process."
            }
        };
        let distance = self.distance.describe();
        let (data, speed, rounds) = (&self.data, self.speed, self.rounds);
        format!("Data: {data}; {distance}. Played at {speed} times the recorded speed, {rounds} round(s). {machines}")
    }

    fn requests(&self) -> String {
        let clients = match self.clients {
            Clients::PerRequest => {
                "Each request to a cache has a client of its own, which connects first, as in the original measurements"
                    .to_owned()
            }
            Clients::SHARED => "All requests to a cache share one client of each server, with its connections".to_owned(),
            Clients::Kept(count) => {
                format!("Requests to a cache go over {count} clients in turn, each with connections and routes of its own")
            }
        };
        format!(
            "Requests come at the trace's times, whether or not earlier ones have been answered; the first is due at once. Each \
             reads whole columns of its objects, all rows of them: row groups, filters and limits of a recorded request are not \
             played. {clients}; direct reads share one connection pool in any case. A response time counts from when the request \
             was due to its last row. Each side starts a trace with an empty cache. Cold is the first request for an object. \
             Joined is one that was due before the first request for one of its objects had been answered, on whichever side of \
             the same round took longest for that, so that the same requests are meant on all sides. Repeat is every later one."
        )
    }

    fn side(&self, side: SideKind) -> String {
        let counts: Vec<String> = self.servers.counts().iter().map(ToString::to_string).collect();
        let (capacity, count) = (self.capacity.display().si(), counts.join(", then "));
        match (side, &self.servers) {
            (SideKind::Direct, _) => "direct: DataFusion in the client, a new session for each request.".to_owned(),
            (SideKind::WholeFile, servers) => {
                let place = match servers {
                    Servers::Own(_) => "",
                    Servers::Running(_) => {
                        " They are in this process and reached over the loopback, so that no network lies between them and the \
                         client, as it may do with Flightcache's servers."
                    }
                };
                format!(
                    "whole-file cache: {count} node(s) that keep Parquet files as they are, {capacity} each, one load per \
                     object; the client looks up the route and decodes; server includes the transfer.{place}"
                )
            }
            (SideKind::Flightcache, servers) => {
                let servers = match servers {
                    Servers::Own(_) => format!("{count} in this process, {capacity} of decoded columns each"),
                    Servers::Running(locations) => format!("running at {}", locations.join(", ")),
                };
                format!(
                    "flightcache: server(s) {servers}; server is filtering and encoding, the transfer is in the rest. Its stages \
                     are sums over concurrent work; where they exceed a request's time they are shrunk to it, all alike. They \
                     leave out what a request waits for: another's load, and the reading of a footer while the scan is planned; \
                     both are in the rest."
                )
            }
        }
    }
}

fn partial(schedule: &Schedule) -> String {
    let Schedule { trace, partial, reads, .. } = schedule;
    format!(
        "Warning: at least {partial} of the {} requests of {trace} read only some row groups when they were recorded; here they \
         read whole columns, which is more.",
        reads.len()
    )
}

#[cfg(test)]
mod tests {
    use super::super::tests::options;

    fn notes(args: &[&str]) -> String {
        options(&[&["--data", "s3://b/"], args].concat()).unwrap().notes(&[]).join("\n")
    }

    #[test]
    fn they_speak_of_what_is_compared_and_where_it_runs() {
        let own = notes(&["--servers", "2"]);
        assert!(own.contains("share this machine's cores") && own.contains("whole-file cache: 2 node(s)"), "{own}");
        assert!(own.contains("a client of its own") && !own.contains("loopback"), "{own}");
        let running = notes(&["--servers", "grpc://a:1,grpc://b:1", "--clients", "shared"]);
        assert!(running.contains("processes of their own") && running.contains("grpc://a:1, grpc://b:1"), "{running}");
        assert!(running.contains("share one client") && !running.contains("this machine's cores"), "{running}");
        assert!(!running.contains("whole-file cache:"), "{running}");
        let several = notes(&["--servers", "1,3", "--clients", "2"]);
        assert!(several.contains("1, then 3 node(s)") && several.contains("over 2 clients in turn"), "{several}");
        let asked_for = notes(&["--servers", "grpc://a:1", "--sides", "whole-file,flightcache"]);
        assert!(asked_for.contains("loopback") && !asked_for.contains("direct:"), "{asked_for}");
    }
}
