//! What a kept stream holds, for services that ask.

use std::time::Duration;

use serde_json::{Value, json};
use tidings::backplane::{BackplaneKind, BackplaneUrl};
use tidings::config::Config;
use tidings::doors::config::{ApiKeyConfig, Scope};
use tidings::hub::{Namespace, PublishRule, SubscribeRule};
use tidings::model::{ChannelName, Secret, sha256};

use crate::support::redis::RedisServer;
use crate::support::{TestNode, next, node_with};

/// Namespace `kept` keeps 2,000 messages, and a user's inbox as many.
fn keeping(config: &mut Config) {
    config.inbox.max_messages = 2000;
    config.inbox.max_bytes = 64 << 20;
    config.namespaces.push(Namespace {
        name: ChannelName::parse("kept").expect("a name"),
        subscribe: SubscribeRule::Any,
        publish: PublishRule::Any,
        max_messages: 2000,
        max_age: Duration::from_secs(3600),
        max_bytes: 64 << 20,
    });
}

async fn history(node: &TestNode, query: &str) -> Value {
    let (status, answer) = node.get(&format!("/v1/history?{query}")).await;
    assert_eq!(status, 200, "{query}: {answer}");
    answer
}

fn entries(answer: &Value) -> &Vec<Value> {
    answer["entries"].as_array().expect("a list")
}

fn bodies(answer: &Value) -> Vec<Value> {
    let list = entries(answer).iter();
    list.map(|entry| entry["message"].clone()).collect()
}

fn numbers(range: std::ops::Range<u32>) -> Vec<Value> {
    range.map(Value::from).collect()
}

/// The same in memory and in Redis.
async fn each_backplane(test: impl AsyncFn(TestNode)) {
    test(node_with(keeping).await).await;
    let redis = RedisServer::start().await;
    let node = node_with(|config| {
        keeping(config);
        config.backplane.kind = BackplaneKind::Redis;
        config.backplane.url = Some(BackplaneUrl::new(redis.url()));
    });
    test(node.await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_follow_one_another_to_the_end_and_on() {
    each_backplane(async |node| {
        for address in ["user:42", "channel:kept:a"] {
            let push = async |n: u32| match address {
                "user:42" => node.push("42", json!(n)).await,
                _ => node.publish("kept:a", json!(n)).await,
            };
            let empty = history(&node, &format!("address={address}")).await;
            assert!(entries(&empty).is_empty() && empty["position"].is_string());
            let mut answers = Vec::new();
            for n in 0..250 {
                answers.push(push(n).await);
            }
            let first = history(&node, &format!("address={address}")).await;
            assert_eq!(bodies(&first), numbers(0..100));
            assert!(first.get("recovered").is_none(), "{first}");
            for (entry, answer) in entries(&first).iter().zip(&answers) {
                assert_eq!(entry["message_id"], answer["message_id"]);
                assert_eq!(entry["position"], answer["position"]);
                assert!(entry["time"].is_u64());
            }
            assert_eq!(first["position"], entries(&first)[99]["position"]);
            let (mut seen, mut at) = (Vec::new(), empty["position"].clone());
            loop {
                let since = at.as_str().expect("a position");
                let query = format!("address={address}&since={since}&limit=120");
                let page = history(&node, &query).await;
                assert_eq!(page["recovered"], true, "{page}");
                at = page["position"].clone();
                if entries(&page).is_empty() {
                    break;
                }
                seen.extend(bodies(&page));
            }
            assert_eq!(seen, numbers(0..250));
            push(250).await;
            let since = at.as_str().expect("a position");
            let more = history(&node, &format!("address={address}&since={since}")).await;
            assert_eq!(bodies(&more), numbers(250..251));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_come_as_they_were_pushed() {
    each_backplane(async |node| {
        let (mut socket, _) = node.join("42", "").await;
        let text = "say \"hi\" ü\n";
        let bodies = [
            json!({"message": text}),
            json!({"json": "{\"n\": 1.50}"}),
            json!({"binary": "AP8="}),
        ];
        let mut ids = Vec::new();
        for mut body in bodies {
            body["user_id"] = "42".into();
            let (status, answer) = node.post("/v1/push", body).await;
            assert_eq!(status, 200, "{answer}");
            ids.push(next(&mut socket).await["id"].clone());
        }
        let answer = node
            .http
            .get(format!(
                "http://{}/v1/history?address=user:42",
                node.at.service
            ))
            .bearer_auth(crate::support::KEY)
            .send()
            .await
            .expect("answered");
        let answer = answer.text().await.expect("text");
        assert!(answer.contains("\"message\":{\"n\": 1.50}"), "{answer}");
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        let list = entries(&answer);
        assert_eq!(list[0]["message"], text);
        assert_eq!(list[2]["binary"], "AP8=");
        assert!(list[2].get("message").is_none() && list[0].get("binary").is_none());
        let seen: Vec<_> = list.iter().map(|e| e["message_id"].clone()).collect();
        assert_eq!(seen, ids);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_expired_is_left_out_and_what_is_lost_is_told() {
    each_backplane(async |node| {
        let push = async |n: u32, ttl: Option<&str>| {
            let mut body = json!({"user_id": "42", "message": n});
            if let Some(ttl) = ttl {
                body["ttl"] = ttl.into();
            }
            let (status, answer) = node.post("/v1/push", body).await;
            assert_eq!(status, 200, "{answer}");
            answer
        };
        for n in 0..300 {
            let ttl = (n % 3 != 0).then_some("1ms");
            push(n, ttl).await;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
        let answer = history(&node, "address=user:42&limit=100").await;
        let kept: Vec<_> = (0..300).step_by(3).map(Value::from).collect();
        assert_eq!(bodies(&answer), kept);
        let middle = entries(&answer)[50]["position"].as_str().expect("one");
        let query = format!("address=user:42&since={middle}&limit=10");
        let page = history(&node, &query).await;
        assert_eq!(bodies(&page), kept[51..61]);
        assert_eq!(page["recovered"], true, "{page}");
        // Of another user's stream.
        let foreign = node.push("43", json!(1)).await;
        let foreign = foreign["position"].as_str().expect("one");
        let query = format!("address=user:42&since={foreign}&limit=1000");
        let page = history(&node, &query).await;
        assert_eq!(page["recovered"], false, "{page}");
        assert_eq!(bodies(&page), kept);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn big_messages_come_in_answers_that_a_grpc_client_takes() {
    let node = node_with(keeping).await;
    let big = "x".repeat(60_000);
    for n in 0..60 {
        node.push("42", json!({"n": n, "big": big})).await;
    }
    let (mut seen, mut query) = (0, "address=user:42".to_owned());
    loop {
        let page = history(&node, &query).await;
        assert!(page.to_string().len() < 4 << 20);
        if entries(&page).is_empty() {
            break;
        }
        for entry in entries(&page) {
            assert_eq!(entry["message"]["n"], seen);
            seen += 1;
        }
        let at = page["position"].as_str().expect("one");
        query = format!("address=user:42&since={at}");
    }
    assert_eq!(seen, 60);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_question_is_told_with_its_field_and_the_fix() {
    let node = node_with(|config| config.inbox.max_messages = 0).await;
    let cases = [
        ("address=user:42", "address", "[inbox] max_messages = 0"),
        (
            "address=channel:chat:7",
            "address",
            "\"chat\" has max_messages = 0 in [[namespaces]]",
        ),
        ("address=everyone", "address", "user:<id> or channel:<name>"),
        ("address=user:4%202", "address", "spaces"),
        ("address=user:42&since=now", "since", "a position"),
        ("address=user:42&limit=1001", "limit", "at most 1000"),
        ("", "", "missing field `address`"),
        ("address=user:42&limit=x", "", "limit"),
        ("address=user:42&sinse=x", "", "unknown field `sinse`"),
    ];
    for (query, field, problem) in cases {
        let (status, answer) = node.get(&format!("/v1/history?{query}")).await;
        assert_eq!(
            (status, &answer["code"]),
            (400, &json!("INVALID_ARGUMENT")),
            "{query}: {answer}"
        );
        let (said, detail) = (&answer["field"], answer["detail"].to_string());
        assert!(
            said.as_str().unwrap_or_default() == field,
            "{query}: {answer}"
        );
        assert!(
            detail.replace("\\\"", "\"").contains(problem),
            "{query}: {answer}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_reads_only_what_its_addresses_name_and_only_with_the_scope() {
    let key = |name: &str, scopes: &[Scope]| ApiKeyConfig {
        name: name.into(),
        sha256: Secret::new(
            sha256(name.as_bytes())
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect::<String>(),
        ),
        scopes: scopes.to_vec(),
        addresses: vec!["user:4*".into()],
        pushes_per_second: 0,
    };
    let node = node_with(|config| {
        config.api_keys.push(key("reader", &[Scope::Read]));
        config.api_keys.push(key("pusher", &[Scope::Push]));
    })
    .await;
    for (name, address, expected) in [
        ("reader", "user:42", 200),
        ("reader", "user:5", 403),
        ("pusher", "user:42", 403),
    ] {
        let url = format!("http://{}/v1/history?address={address}", node.at.service);
        let asked = node.http.get(url).bearer_auth(name).send().await;
        let status = asked.expect("answered").status();
        assert_eq!(status, expected, "{name} {address}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_backplane_it_is_unavailable_with_when_to_ask_again() {
    let mut redis = RedisServer::start().await;
    let node = node_with(|config| {
        config.backplane.kind = BackplaneKind::Redis;
        config.backplane.url = Some(BackplaneUrl::new(redis.url()));
    })
    .await;
    node.push("42", json!(1)).await;
    redis.kill().await;
    for path in ["/v1/history?address=user:42", "/v1/channels/a/presence"] {
        let (status, answer) = node.get(path).await;
        assert_eq!(
            (status, &answer["code"], &answer["retry_after_ms"]),
            (503, &json!("UNAVAILABLE"), &json!(1000)),
            "{path}: {answer}"
        );
    }
}
