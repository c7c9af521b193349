use tokio::signal::unix::{SignalKind, signal};

use super::Run;
use super::exit::{Failure, block_on, say};
use crate::config::{Config, Mode, Sources, load};
use crate::doors::config::DEVELOPMENT_KEY;
use crate::hub::raise_descriptor_limit;
use crate::node::{Addresses, Node};
use crate::telemetry::logs;

pub(super) fn dev(args: Run) -> Result<(), Failure> {
    run(args, Mode::Dev)
}

pub(super) fn serve(args: Run) -> Result<(), Failure> {
    run(args, Mode::Production)
}

fn run(args: Run, mode: Mode) -> Result<(), Failure> {
    let base = match mode {
        Mode::Dev => Config::dev(),
        Mode::Production => Config::default(),
    };
    let sources = Sources::of_process(args.config, args.sets).map_err(Failure::usage)?;
    let configuration = || {
        let mut config = load(&base, &sources)?;
        if mode == Mode::Dev {
            config.allow_development_key();
        }
        config.check(mode)?;
        Ok(config)
    };
    let config = configuration().map_err(Failure::usage)?;
    let level = logs::init(&config.log);
    raise_descriptor_limit();
    block_on(async {
        let mut terminate =
            signal(SignalKind::terminate()).map_err(|e| Failure::failed(e.to_string()))?;
        let mut interrupt =
            signal(SignalKind::interrupt()).map_err(|e| Failure::failed(e.to_string()))?;
        let mut reload = match mode {
            // Who closes the terminal of `tidings dev` means its end.
            Mode::Dev => None,
            Mode::Production => {
                let hangup = signal(SignalKind::hangup());
                Some(hangup.map_err(|e| Failure::failed(e.to_string()))?)
            }
        };
        let mut node = Node::start(config, mode).await.map_err(Failure::failed)?;
        let addresses = node.addresses;
        let bound = match (args.json, mode) {
            (true, _) => Some(json(&addresses, &node.id.to_string(), mode)),
            (false, Mode::Dev) => Some(banner(&addresses)),
            (false, Mode::Production) => None,
        };
        if let Some(bound) = bound {
            // A node runs on, whether anybody reads this or not.
            let _ = say(&bound);
        }
        let mut stop = async || {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        let asked = node.asked_to_leave();
        tokio::pin!(asked);
        let signalled = loop {
            let reloaded = async {
                match &mut reload {
                    Some(hangup) => hangup.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop() => break true,
                () = &mut asked => break false,
                // Signals that come meanwhile are one more.
                _ = reloaded => {
                    // What is wrong is in the log.
                    if node.reload(configuration).await.is_ok() {
                        level.set(node.config().log.level);
                    }
                }
            }
        };
        let now = async {
            // A hook that asked at the admin door is followed by the platform's signal: that is the first, not the second.
            if !signalled {
                stop().await;
                tracing::info!(
                    "signalled in a drain that was asked for: the drain goes on; another signal means now"
                );
            }
            stop().await;
        };
        node.leave(now).await;
        Ok(())
    })
}

fn json(addresses: &Addresses, node: &str, mode: Mode) -> String {
    let mut shown = serde_json::json!({
        "node": node,
        "public": addresses.public.to_string(),
        "service": addresses.service.to_string(),
        "admin": addresses.admin.to_string(),
    });
    if mode == Mode::Dev {
        shown["key"] = DEVELOPMENT_KEY.into();
    }
    shown.to_string()
}

/// What `tidings dev` prints.
fn banner(addresses: &Addresses) -> String {
    let Addresses {
        public,
        service,
        admin,
        ..
    } = addresses;
    format!(
        r#"
  Tidings {version}, one node for development

  playground   http://{public}/
  clients      ws://{public}/ws
  services     http://{service}   gRPC and HTTP/JSON
  admin        http://{admin}/metrics
  API key      {DEVELOPMENT_KEY}

  Push to user 42:

    curl http://{service}/v1/push -H 'Authorization: Bearer {DEVELOPMENT_KEY}' \
      -H 'Content-Type: application/json' -d '{{"user_id":"42","message":{{"hello":"world"}}}}'
"#,
        version = env!("CARGO_PKG_VERSION"),
    )
}
