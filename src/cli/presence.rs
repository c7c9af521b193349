use clap::Args;

use super::call::{Server, refused};
use super::exit::{Failure, block_on, columns, say};
use crate::proto::tidings::v1::connections_client::ConnectionsClient;
use crate::proto::tidings::v1::{PresenceRequest, PresenceResponse, presence_response::Member};

#[derive(Debug, Args)]
pub(super) struct PresenceArgs {
    /// The channel.
    channel: String,
    #[command(flatten)]
    server: Server,
}

pub(super) fn presence(args: PresenceArgs) -> Result<(), Failure> {
    let PresenceArgs { channel, server } = args;
    let answer = block_on(async {
        let mut client = ConnectionsClient::new(server.channel().await?);
        let answer = client.presence(server.request(PresenceRequest { channel })?);
        Ok(answer
            .await
            .map_err(|status| refused(&status))?
            .into_inner())
    })?;
    match server.json {
        true => say(&json(&answer)),
        false => say(&table(&answer)),
    }
}

/// As `GET /v1/channels/{channel}/presence` answers.
fn json(answer: &PresenceResponse) -> String {
    let member = |member: &Member| {
        let mut json = serde_json::json!({
            "user_id": member.user_id,
            "connection": member.connection,
            "node": member.node,
        });
        if !member.device.is_empty() {
            json["device"] = member.device.as_str().into();
        }
        json
    };
    let members: Vec<_> = answer.members.iter().map(member).collect();
    let PresenceResponse { total, unknown, .. } = answer;
    serde_json::json!({"members": members, "total": total, "unknown": unknown}).to_string()
}

/// A line for each member below a line of titles; then what the list does not tell.
fn table(answer: &PresenceResponse) -> String {
    let mut rows = vec![["USER", "DEVICE", "NODE", "CONNECTION"].map(String::from)];
    rows.extend(answer.members.iter().map(|member| {
        [
            &member.user_id,
            &member.device,
            &member.node,
            &member.connection,
        ]
        .map(String::clone)
    }));
    let mut text = columns(&rows);
    let listed = answer.members.len();
    if answer.total as usize > listed {
        text += &format!("\n{listed} of {} are listed", answer.total);
    }
    if answer.unknown > 0 {
        text += &format!("\n{} nodes did not answer", answer.unknown);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_a_table_for_people_and_json_for_programs() {
        let member = |user: &str, device: &str| Member {
            user_id: user.into(),
            connection: "AQ".into(),
            device: device.into(),
            node: "a".into(),
        };
        let answer = PresenceResponse {
            members: vec![member("42", "phone"), member("anna", "")],
            total: 3,
            unknown: 1,
        };
        let lines = [
            "USER  DEVICE  NODE  CONNECTION",
            "42    phone   a     AQ",
            "anna          a     AQ",
            "2 of 3 are listed",
            "1 nodes did not answer",
        ];
        assert_eq!(table(&answer), lines.join("\n"));
        assert_eq!(
            json(&answer),
            r#"{"members":[{"connection":"AQ","device":"phone","node":"a","user_id":"42"},{"connection":"AQ","node":"a","user_id":"anna"}],"total":3,"unknown":1}"#
        );
    }
}
