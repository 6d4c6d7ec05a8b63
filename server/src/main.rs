//! `flightcache-server`: see `--help`.

use std::process::ExitCode;

use clap::Parser as _;
use flightcache_server::settings::{Flags, LogFormat};
use flightcache_server::{Server, Settings};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

// Buffers of a MiB come and go with every answer: glibc gives each back to the system and faults it in anew.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let flags = Flags::parse();
    let settings = match flags.settings() {
        Ok(settings) => settings,
        Err(error) => return fail(&error.message, 2),
    };
    if flags.print_config {
        return match settings.to_toml() {
            Ok(toml) => {
                print!("{toml}");
                ExitCode::SUCCESS
            }
            Err(error) => fail(&error.message, 1),
        };
    }
    let filter = match EnvFilter::try_new(&settings.log) {
        Ok(filter) => filter,
        Err(error) => return fail(&format!("--log {:?}: {error}", settings.log), 2),
    };
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match settings.log_format {
        LogFormat::Text => logs.init(),
        LogFormat::Json => logs.json().init(),
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.to_string(), 1),
    };
    let code = runtime.block_on(run(&settings));
    // Decoders that are still at it have nobody left to work for.
    runtime.shutdown_background();
    code
}

async fn run(settings: &Settings) -> ExitCode {
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(mut terminate), Ok(mut interrupt)) = signals else { return fail("signals cannot be handled", 1) };
    let server = match Server::start(settings).await {
        Ok(server) => server,
        Err(error) => return fail(&error.message, 1),
    };
    let unix = server.unix_path().map_or_else(String::new, |path| format!(" unix=grpc+unix://{}", path.display()));
    println!("flightcache-server ready flight=grpc+tcp://{} admin=http://{}{unix}", server.flight_addr(), server.admin_addr());
    let error = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        error = server.cluster().failed() => Some(error),
    };
    tracing::info!("draining");
    if !server.shutdown().await {
        tracing::warn!("some requests did not end in time and were cut off");
    }
    error.map_or(ExitCode::SUCCESS, |error| fail(&error.message, 1))
}

fn fail(message: &str, code: u8) -> ExitCode {
    eprintln!("error: {message}");
    ExitCode::from(code)
}
