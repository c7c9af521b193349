//! What two nodes of different versions owe each other: one asks, the other serves.

use serde_json::json;

use super::ends::{Checked, Events, Web, get, post, same, ticket, word};
use crate::fleet::Node;

/// Two nodes, and a name that no other check has.
pub(super) struct Pair<'a> {
    pub(super) asks: &'a Node,
    pub(super) serves: &'a Node,
    pub(super) user: String,
}

/// The checks of one pair, and what each of them found.
pub(super) async fn all(pair: &Pair<'_>) -> Vec<(&'static str, Checked<()>)> {
    vec![
        ("knows the other's lease", lease(pair).await),
        ("issues a ticket that opens there", issued(pair).await),
        ("pushes to who is there", pushed(pair).await),
        ("publishes to a channel there", published(pair).await),
        (
            "has what was kept, by a position from there",
            kept(pair).await,
        ),
        (
            "knows an idempotency key from there",
            idempotent(pair).await,
        ),
        ("redeems a resume ticket sealed there", resumed(pair).await),
        ("says who is there", whereabouts(pair).await),
        ("disconnects who is there", disconnected(pair).await),
    ]
}

async fn lease(pair: &Pair<'_>) -> Checked<()> {
    let answer = get(pair.asks, "/v1/nodes").await?;
    let nodes = answer["nodes"].as_array().ok_or("no nodes")?;
    let knows = nodes
        .iter()
        .any(|node| node["id"] == pair.serves.name.as_str());
    same("whether it knows the other", knows, true)
}

async fn issued(pair: &Pair<'_>) -> Checked<()> {
    let shown = ticket(pair.asks, &pair.user).await?;
    let (_web, welcome) = Web::open(pair.serves, &format!("ticket={shown}")).await?;
    same(
        "the node",
        word(&welcome, "node")?,
        pair.serves.name.clone(),
    )?;
    let again = Web::open(pair.asks, &format!("ticket={shown}")).await;
    same("whether it opens twice", again.is_ok(), false)
}

/// A connection of the user at the node that serves.
async fn there(pair: &Pair<'_>, query: &str) -> Checked<(Web, serde_json::Value)> {
    let shown = ticket(pair.serves, &pair.user).await?;
    Web::open(pair.serves, &format!("ticket={shown}&{query}")).await
}

async fn pushed(pair: &Pair<'_>) -> Checked<()> {
    let (mut web, _) = there(pair, "since=now").await?;
    let push = json!({"user_id": pair.user, "message": "hello", "class": "VOLATILE"});
    let answer = post(pair.asks, "/v1/push", &push).await?;
    same(
        "the status",
        word(&answer, "status")?,
        "DISPATCHED_TO_CLUSTER".into(),
    )?;
    let message = web.until("message").await?;
    same(
        "the id",
        word(&message, "id")?,
        word(&answer, "message_id")?,
    )
}

async fn published(pair: &Pair<'_>) -> Checked<()> {
    let channel = format!("kept:{}", pair.user);
    let (mut web, _) = there(pair, &format!("channels={channel}")).await?;
    web.until("subscribed").await?;
    let publish = json!({"channel": channel, "message": {"n": 1}});
    let answer = post(pair.asks, "/v1/publish", &publish).await?;
    let message = web.until("message").await?;
    same(
        "the position",
        word(&message, "position")?,
        word(&answer, "position")?,
    )?;
    let present = get(pair.asks, &format!("/v1/channels/{channel}/presence")).await?;
    same(
        "who is present",
        word(&present["members"][0], "node")?,
        pair.serves.name.clone(),
    )
}

async fn kept(pair: &Pair<'_>) -> Checked<()> {
    let (web, welcome) = there(pair, "since=now").await?;
    let position = word(&welcome, "position")?;
    drop(web);
    let push = |text: &str| json!({"user_id": pair.user, "class": "KEPT", "message": text});
    let first = post(pair.asks, "/v1/push", &push("first")).await?;
    let second = post(pair.serves, "/v1/push", &push("second")).await?;
    let shown = ticket(pair.serves, &pair.user).await?;
    let query = format!("ticket={shown}&since={position}");
    let (mut web, welcome) = Web::open(pair.asks, &query).await?;
    same("recovered", welcome["recovered"].as_bool(), Some(true))?;
    for pushed in [first, second] {
        let message = web.until("message").await?;
        same(
            "the id",
            word(&message, "id")?,
            word(&pushed, "message_id")?,
        )?;
    }
    Ok(())
}

async fn idempotent(pair: &Pair<'_>) -> Checked<()> {
    let push = json!({
        "user_id": pair.user,
        "class": "KEPT",
        "message": "once",
        "idempotency_key": format!("once-{}", pair.user),
    });
    let first = post(pair.serves, "/v1/push", &push).await?;
    let again = post(pair.asks, "/v1/push", &push).await?;
    same(
        "the id",
        word(&again, "message_id")?,
        word(&first, "message_id")?,
    )?;
    same("duplicate", again["duplicate"].as_bool(), Some(true))
}

async fn resumed(pair: &Pair<'_>) -> Checked<()> {
    let shown = ticket(pair.serves, &pair.user).await?;
    let mut events = Events::open(pair.serves, &format!("ticket={shown}&since=now"), None).await?;
    events.until("welcome").await?;
    let id = events.id.clone();
    drop(events);
    let push = json!({"user_id": pair.user, "class": "KEPT", "message": "meanwhile"});
    let pushed = post(pair.serves, "/v1/push", &push).await?;
    let mut events = Events::open(pair.asks, &format!("ticket={shown}"), Some(&id)).await?;
    let welcome = events.until("welcome").await?;
    same("recovered", welcome["recovered"].as_bool(), Some(true))?;
    let message = events.until("message").await?;
    same(
        "the id",
        word(&message, "id")?,
        word(&pushed, "message_id")?,
    )
}

async fn whereabouts(pair: &Pair<'_>) -> Checked<()> {
    let (_web, welcome) = there(pair, "").await?;
    let connection = word(&welcome, "connection")?;
    let answer = get(pair.asks, &format!("/v1/users/{}/connections", pair.user)).await?;
    same("unknown", answer["unknown"].as_u64(), Some(0))?;
    let connections = answer["connections"].as_array().ok_or("no connections")?;
    let mut here = connections
        .iter()
        .filter(|c| c["connection"] == connection.as_str());
    same(
        "its node",
        here.next().and_then(|c| c["node"].as_str()),
        Some(pair.serves.name.as_str()),
    )
}

async fn disconnected(pair: &Pair<'_>) -> Checked<()> {
    let (mut web, welcome) = there(pair, "").await?;
    let call = json!({"connection": word(&welcome, "connection")?, "reason": "mixed"});
    let answer = post(pair.asks, "/v1/disconnect", &call).await?;
    same("applied", answer["applied"].as_u64(), Some(1))?;
    same("the code", web.close_code().await?, 4501)
}
