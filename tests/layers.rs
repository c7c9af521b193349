//! Dependencies point one way.

use std::path::{Path, PathBuf};

/// The rooms, bottom to top; a room names only what is before it. `proto` is generated and below all.
const ROOMS: [&str; 14] = [
    "proto",
    "model",
    "telemetry",
    "tls",
    "wire",
    "backplane",
    "tickets",
    "hub",
    "sources",
    "fleet",
    "doors",
    "config",
    "node",
    "cli",
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn a_room_names_only_what_is_below_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut checked = 0;
    for file in files {
        let inside = file.strip_prefix(&root).expect("below src");
        let room = inside
            .iter()
            .next()
            .expect("a name")
            .to_string_lossy()
            .trim_end_matches(".rs")
            .to_owned();
        if ["lib", "main"].contains(&room.as_str()) {
            continue;
        }
        let own = ROOMS
            .iter()
            .position(|r| *r == room)
            .unwrap_or_else(|| panic!("{room} is not in ROOMS"));
        let text = std::fs::read_to_string(&file).expect("text");
        for named in text.split("crate::").skip(1) {
            let named: String = named
                .chars()
                .take_while(|c| c.is_ascii_lowercase())
                .collect();
            let Some(theirs) = ROOMS.iter().position(|r| *r == named) else {
                continue;
            };
            assert!(
                theirs <= own,
                "{} names {named}, which is above {room}",
                inside.display()
            );
            checked += 1;
        }
    }
    assert!(checked > 50, "only {checked} names found");
}

#[test]
fn big_libraries_stay_in_their_rooms() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let bans = [
        ("axum::", "doors"),
        ("tonic::", "doors cli lib.rs"),
        ("hyper::", "doors cli"),
        ("clap::", "cli"),
        ("use redis::", "backplane tickets"),
    ];
    for file in files {
        let inside = file.strip_prefix(&root).expect("below src");
        let room = inside
            .iter()
            .next()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        let text = std::fs::read_to_string(&file).expect("text");
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (library, rooms) in bans {
            let named = code
                .lines()
                .any(|line| line.contains(library) && !line.trim_start().starts_with("//"));
            let tests = inside
                .iter()
                .any(|part| part == "tests" || part == "tests.rs");
            let home =
                rooms.split(' ').any(|r| r == room) || (room == "node.rs" && library == "axum::");
            assert!(
                !named || tests || home,
                "{} names {library}",
                inside.display()
            );
        }
    }
}
