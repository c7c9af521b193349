//! `/openapi.json` says what the routes of the service door do, no more and no less.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::support::{TestNode, node};

/// Where the routes of the door are; what it says is what is served.
const ROUTES: &str = include_str!("../src/doors/service/http/mod.rs");

async fn document(node: &TestNode) -> Value {
    let url = format!("http://{}/openapi.json", node.at.service);
    let answer = node.http.get(url).send().await.expect("answered");
    assert_eq!(answer.headers()["content-type"], "application/json");
    serde_json::from_str(&answer.text().await.expect("text")).expect("JSON")
}

/// Each operation: its path, its method and what is said of it.
fn operations(document: &Value) -> Vec<(&str, &str, &Value)> {
    let paths = document["paths"].as_object().expect("paths");
    paths
        .iter()
        .flat_map(|(path, methods)| {
            let methods = methods.as_object().expect("methods");
            methods
                .iter()
                .map(|(method, says)| (path.as_str(), method.as_str(), says))
        })
        .collect()
}

/// A part of the document, by its `$ref` if it has one.
fn resolve<'a>(document: &'a Value, part: &'a Value) -> &'a Value {
    match part["$ref"].as_str() {
        Some(name) => document
            .pointer(name.trim_start_matches('#'))
            .unwrap_or_else(|| panic!("{name} is not there")),
        None => part,
    }
}

fn example<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    let schema = resolve(document, schema);
    let first = schema["examples"].get(0);
    first.unwrap_or_else(|| panic!("no example: {schema}"))
}

fn request<'a>(document: &'a Value, says: &'a Value) -> &'a Value {
    resolve(
        document,
        &says["requestBody"]["content"]["application/json"]["schema"],
    )
}

fn names(list: &Value) -> Vec<&str> {
    let list = list.as_array().into_iter().flatten();
    list.map(|name| name.as_str().expect("a name")).collect()
}

/// The smallest request with this field: it, what is required, and one of each choice.
fn smallest_with(document: &Value, schema: &Value, field: Option<&str>) -> Value {
    let mut body = Map::new();
    let put = |body: &mut Map<String, Value>, name: &str| {
        let value = example(document, &schema["properties"][name]);
        body.insert(name.into(), value.clone());
    };
    for name in field.into_iter().chain(names(&schema["required"])) {
        put(&mut body, name);
    }
    if field == Some("collapse_key") {
        body.insert("class".into(), "VOLATILE".into());
    }
    for choice in schema["allOf"].as_array().into_iter().flatten() {
        let choices = choice["oneOf"].as_array().expect("choices");
        let choices: Vec<_> = choices.iter().map(|c| names(&c["required"])[0]).collect();
        if !choices.iter().any(|name| body.contains_key(*name)) {
            put(&mut body, choices[0]);
        }
    }
    body.into()
}

/// That an answer has the fields that its schema names, and each required one.
fn check(document: &Value, schema: &Value, answer: &Value) {
    let schema = resolve(document, schema);
    for item in answer.as_array().into_iter().flatten() {
        check(document, &schema["items"], item);
    }
    let (Some(fields), Some(named)) = (answer.as_object(), schema["properties"].as_object()) else {
        return;
    };
    for name in names(&schema["required"]) {
        assert!(fields.contains_key(name), "{name} is missing: {answer}");
    }
    for (name, value) in fields {
        let schema = named.get(name);
        let schema = schema.unwrap_or_else(|| panic!("{name} is not documented: {answer}"));
        check(document, schema, value);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_route_of_the_door_is_documented() {
    let node = node().await;
    let document = document(&node).await;
    let documented: BTreeSet<_> = operations(&document)
        .iter()
        .map(|(path, method, _)| format!("{method} {path}"))
        .collect();
    let served: BTreeSet<_> = ROUTES
        .split(".route(\"")
        .skip(1)
        .map(|route| {
            let (path, rest) = route.split_once("\", ").expect("a path");
            let (method, _) = rest.split_once('(').expect("a method");
            format!("{method} {path}")
        })
        .collect();
    assert_eq!(documented, served);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_documented_operation_answers_as_documented() {
    let node = node().await;
    let _here = node.join("42", "&device=phone").await;
    let document = document(&node).await;
    // What closes the connection comes last.
    let mut all = operations(&document);
    all.sort_by_key(|(_, method, _)| *method);
    for (path, method, says) in all {
        let mut target = path.to_owned();
        for parameter in says["parameters"].as_array().into_iter().flatten() {
            let name = parameter["name"].as_str().expect("a name");
            let value = example(&document, &parameter["schema"]);
            let value = value.as_str().map_or_else(|| value.to_string(), Into::into);
            if parameter["in"] == "path" {
                target = target.replace(&format!("{{{name}}}"), &value);
            } else {
                let mark = if target.contains('?') { '&' } else { '?' };
                target = format!("{target}{mark}{name}={value}");
            }
        }
        let (status, answer) = match method {
            "get" => node.get(&target).await,
            "post" => {
                let body = smallest_with(&document, request(&document, says), None);
                node.post(&target, body).await
            }
            other => panic!("{other}: teach this test"),
        };
        let (expected, content) = match says["responses"].get("200") {
            Some(found) => (200, &found["content"]["application/json"]),
            None => {
                let problem = resolve(&document, &says["responses"]["501"]);
                (501, &problem["content"]["application/problem+json"])
            }
        };
        assert_eq!(status, expected, "{method} {path}: {answer}");
        check(&document, &content["schema"], &answer);
        let keyless = json!({}).to_string();
        let url = format!("http://{}{target}", node.at.service);
        let keyless = match method {
            "get" => node.http.get(url),
            _ => node.http.post(url).body(keyless),
        };
        let status = keyless.send().await.expect("answered").status();
        let open = says["security"].as_array().is_some_and(Vec::is_empty);
        assert_eq!(status.as_u16() == 401, !open, "{method} {path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_documented_field_is_taken_and_no_other() {
    let node = node().await;
    let document = document(&node).await;
    let mut checked = 0;
    for (path, _, says) in operations(&document) {
        if says["requestBody"].is_null() {
            continue;
        }
        let schema = request(&document, says);
        let fields = schema["properties"].as_object().expect("fields");
        for (field, says) in fields {
            let later = resolve(&document, says)["description"]
                .as_str()
                .is_some_and(|text| text.contains("UNIMPLEMENTED"));
            let body = smallest_with(&document, schema, Some(field));
            let (status, answer) = node.post(path, body).await;
            let expected = if later { 501 } else { 200 };
            assert_eq!(status, expected, "{path} {field}: {answer}");
            checked += 1;
        }
        let mut body = smallest_with(&document, schema, None);
        body["not_documented"] = 1.into();
        let (status, answer) = node.post(path, body).await;
        let detail = answer["detail"].as_str().expect("a sentence");
        assert_eq!(status, 400, "{path}: {answer}");
        let (_, taken) = detail.split_once("expected one of").expect(detail);
        let undocumented: Vec<_> = taken
            .split('`')
            .skip(1)
            .step_by(2)
            .map(snake_case)
            .filter(|name| !fields.contains_key(name))
            .collect();
        assert_eq!(undocumented, [""; 0], "{path}: {detail}");
    }
    assert!(checked > 40, "only {checked} fields");
}

fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}
