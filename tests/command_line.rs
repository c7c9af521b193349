//! The command line, as a person meets it.

use std::process::{Command, Output};

use serde_json::json;

use crate::support::{next, node};

fn tidings(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tidings"))
        .args(args)
        .output()
        .expect("the binary runs")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn every_wrong_start_gets_one_clear_sentence() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().expect("an address");
    let taken_flag = format!("public.listen={taken}");
    let free = [
        "--set",
        "service.listen=127.0.0.1:0",
        "--set",
        "admin.listen=127.0.0.1:0",
    ];
    let mut dev = vec!["dev", "--set", &taken_flag];
    dev.extend(free);
    let cases: Vec<(Vec<&str>, i32, &str)> = vec![
        (
            vec!["serve", "--config", "/nonexistent.toml"],
            2,
            "there is no such file",
        ),
        (
            vec!["serve", "--set", "public.allowed_origins=[\"https://a.b\"]"],
            2,
            "there are no [[api_keys]]",
        ),
        (
            vec!["dev", "--set", "heartbeat.intervall=5s"],
            2,
            "did you mean `heartbeat.interval`?",
        ),
        (
            vec!["dev", "--set", "heartbeat.interval=5"],
            2,
            "5 has no unit",
        ),
        (
            vec!["dev", "--set", "public.listen=0.0.0.0:0"],
            2,
            "loopback alone",
        ),
        (dev, 1, "is taken by another process"),
        (
            vec!["push", "42", "hi", "--server", "http://127.0.0.1:1"],
            4,
            "is the node running?",
        ),
    ];
    for (args, code, sentence) in cases {
        let output = tidings(&args);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains(sentence), "{args:?}: {said}");
        assert_eq!(said.trim().lines().count(), 1, "{args:?}: {said}");
    }
}

#[test]
fn a_made_key_and_the_sample_start_a_production_configuration() {
    let made =
        String::from_utf8(tidings(&["config", "key", "--name", "orders"]).stdout).expect("text");
    let sample = String::from_utf8(tidings(&["config", "default"]).stdout).expect("text");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tidings.toml");
    let text = sample.replace(
        "allowed_origins = []",
        "allowed_origins = [\"https://app.example.com\"]",
    );
    std::fs::write(&path, format!("{text}\n{made}")).expect("written");
    let path = path.to_str().expect("text");
    let checked = tidings(&["config", "check", "--config", path]);
    assert!(checked.status.success(), "{}", said(&checked));
    let shown =
        String::from_utf8(tidings(&["config", "show", "--config", path]).stdout).expect("text");
    assert!(shown.contains("sha256 = \"***\""), "{shown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn push_publish_and_ticket_work_against_a_node() {
    let node = node().await;
    let (mut socket, _) = node.join("42", "&channels=news").await;
    next(&mut socket).await;
    let server = format!("http://{}", node.at.service);
    let run = |args: Vec<&'static str>| {
        let server = server.clone();
        tokio::task::spawn_blocking(move || {
            let mut args = args;
            args.extend(["--server", &server]);
            let output = tidings(&args);
            (
                output.status.code(),
                String::from_utf8_lossy(&output.stdout).into_owned(),
                said(&output),
            )
        })
    };
    let (code, out, _) = run(vec!["push", "42", r#"{"a":1}"#]).await.expect("ran");
    assert_eq!(code, Some(0));
    assert!(
        out.starts_with("DELIVERED_LOCALLY: 1 connection(s)"),
        "{out}"
    );
    assert_eq!(next(&mut socket).await["data"], json!({"a": 1}));
    run(vec!["publish", "news", "plain text"])
        .await
        .expect("ran");
    assert_eq!(next(&mut socket).await["data"], "plain text");
    let (_, ticket, _) = run(vec!["ticket", "--user", "43"]).await.expect("ran");
    assert_eq!(ticket.trim().len(), 43);
    let (code, table, _) = run(vec!["nodes"]).await.expect("ran");
    let rows: Vec<&str> = table.lines().collect();
    assert_eq!((code, rows.len()), (Some(0), 2), "{table}");
    assert!(
        rows[0].starts_with("NODE") && rows[1].ends_with("serving"),
        "{table}"
    );
    let (_, json, _) = run(vec!["nodes", "--json"]).await.expect("ran");
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["nodes"][0]["draining"], false);
    let (code, table, _) = run(vec!["presence", "news"]).await.expect("ran");
    assert!(code == Some(0) && table.lines().count() == 2, "{table}");
    let (_, json, _) = run(vec!["history", "user:42", "--json"])
        .await
        .expect("ran");
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["entries"][0]["message"], json!({"a": 1}));
    let (code, _, error) = run(vec!["history", "channel:news"]).await.expect("ran");
    assert!(
        code == Some(3) && error.contains("[[namespaces]]"),
        "{error}"
    );
    let (code, _, error) = run(vec!["push", "4 2", "x"]).await.expect("ran");
    assert!(
        code == Some(3) && error.contains("user_id must not contain spaces"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listen_prints_frames_and_stops_when_told_not_to_come_back() {
    use tokio::io::{AsyncBufReadExt as _, BufReader};
    let node = node().await;
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_tidings"))
        .args([
            "listen",
            "--user",
            "42",
            "--server",
            &format!("http://{}", node.at.service),
        ])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("the binary runs");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let welcome = lines.next_line().await.expect("a line").expect("a frame");
    assert!(welcome.contains(r#""type":"welcome""#), "{welcome}");
    node.push("42", json!("to the terminal")).await;
    let message = lines.next_line().await.expect("a line").expect("a frame");
    assert!(message.contains("to the terminal"), "{message}");
    node.post("/v1/disconnect", json!({"user_id": "42"})).await;
    let status = tokio::time::timeout(crate::support::DEADLINE, child.wait())
        .await
        .expect("in time");
    assert_eq!(status.expect("a status").code(), Some(3));
}

/// A TLS terminator in front of an address, as a proxy would be; answers its port, and its certificate as PEM.
async fn terminator(behind: std::net::SocketAddr) -> (u16, String) {
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use tokio_rustls::rustls::{ServerConfig, crypto};
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let certificate = CertificateDer::from(made.cert.der().to_vec());
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let provider = std::sync::Arc::new(crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("a pair");
    let tls = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let tls = tls.clone();
            tokio::spawn(async move {
                // A client that does not trust the certificate ends here.
                let Ok(mut outside) = tls.accept(stream).await else {
                    return;
                };
                let mut inside = tokio::net::TcpStream::connect(behind)
                    .await
                    .expect("the node");
                let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
            });
        }
    });
    (port, made.cert.pem())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listen_goes_through_tls_and_only_to_whom_it_trusts() {
    use tokio::io::{AsyncBufReadExt as _, BufReader};
    let node = node().await;
    let (port, certificate) = terminator(node.at.public).await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("ca.pem");
    std::fs::write(&path, certificate).expect("written");
    let (server, url) = (
        format!("http://{}", node.at.service),
        format!("wss://localhost:{port}/ws"),
    );
    let args = ["listen", "--user", "42", "--server", &server, "--url", &url];
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_tidings"))
        .args(args)
        .arg("--cacert")
        .arg(&path)
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the binary runs");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let welcome = lines.next_line().await.expect("a line").expect("a frame");
    assert!(welcome.contains(r#""type":"welcome""#), "{welcome}");
    node.push("42", json!("under cover")).await;
    let message = lines.next_line().await.expect("a line").expect("a frame");
    assert!(message.contains("under cover"), "{message}");

    let stranger = tokio::task::spawn_blocking({
        let args = args.map(ToOwned::to_owned);
        move || tidings(&args.each_ref().map(String::as_str))
    });
    let stranger = stranger.await.expect("it ran");
    let told = said(&stranger);
    assert_eq!(stranger.status.code(), Some(1), "{told}");
    assert!(told.contains("--ca-file"), "{told}");
}
