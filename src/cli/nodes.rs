use std::time::SystemTime;

use clap::Args;
use prost_types::Timestamp;

use super::call::{Server, refused};
use super::exit::{Failure, block_on, columns, say};
use crate::proto::tidings::v1::connections_client::ConnectionsClient;
use crate::proto::tidings::v1::{NodesRequest, nodes_response::Node};

#[derive(Debug, Args)]
pub(super) struct NodesArgs {
    #[command(flatten)]
    server: Server,
}

pub(super) fn nodes(args: NodesArgs) -> Result<(), Failure> {
    let server = &args.server;
    let nodes = block_on(async {
        let mut client = ConnectionsClient::new(server.channel().await?);
        let answer = client.nodes(server.request(NodesRequest {})?).await;
        let answer = answer.map_err(|status| refused(&status))?;
        Ok(answer.into_inner().nodes)
    })?;
    match server.json {
        true => say(&json(&nodes)),
        false => say(&table(&nodes)),
    }
}

/// As `GET /v1/nodes` answers.
fn json(nodes: &[Node]) -> String {
    let node = |node: &Node| {
        let since = node.since.and_then(|at| SystemTime::try_from(at).ok());
        let since = since.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        serde_json::json!({
            "id": node.id,
            "version": node.version,
            "connections": node.connections,
            "load": node.load,
            "since": since.map(|at| at.as_millis() as u64),
            "draining": node.draining,
        })
    };
    let nodes: Vec<_> = nodes.iter().map(node).collect();
    serde_json::json!({ "nodes": nodes }).to_string()
}

/// A line for each node below a line of titles, in columns.
fn table(nodes: &[Node]) -> String {
    let titles = ["NODE", "VERSION", "CONNECTIONS", "LOAD", "SINCE", "STATE"];
    let mut rows = vec![titles.map(String::from)];
    rows.extend(nodes.iter().map(|node| {
        // Without its fraction of a second.
        let since = node.since.map(|at| Timestamp { nanos: 0, ..at });
        let since = since.map(|at| at.to_string());
        [
            node.id.clone(),
            node.version.clone(),
            node.connections.to_string(),
            format!("{:.0}%", node.load * 100.0),
            since.unwrap_or_default(),
            match node.draining {
                true => "draining".into(),
                false => "serving".into(),
            },
        ]
    }));
    columns(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str, connections: u32, draining: bool) -> Node {
        Node {
            id: id.into(),
            version: "0.1.0".into(),
            connections,
            load: 0.034,
            since: Some(Timestamp {
                seconds: 1_764_000_000,
                nanos: 5_000_000,
            }),
            draining,
        }
    }

    #[test]
    fn nodes_are_a_table_for_people_and_json_for_programs() {
        let nodes = [node("a", 12_345, false), node("node-b", 0, true)];
        let lines = [
            "NODE    VERSION  CONNECTIONS  LOAD  SINCE                 STATE",
            "a       0.1.0    12345        3%    2025-11-24T16:00:00Z  serving",
            "node-b  0.1.0    0            3%    2025-11-24T16:00:00Z  draining",
        ];
        assert_eq!(table(&nodes), lines.join("\n"));
        assert_eq!(
            json(&nodes[..1]),
            r#"{"nodes":[{"connections":12345,"draining":false,"id":"a","load":0.034,"since":1764000000005,"version":"0.1.0"}]}"#
        );
    }
}
