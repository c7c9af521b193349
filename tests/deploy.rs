//! What ships in `deploy/` fits what a node does by default. The chart and the manifests: scripts/kubernetes.

use std::time::Duration;

use tidings::fleet::DrainConfig;

/// What a drain takes at most, as docs/operations.md says.
fn drain() -> Duration {
    let drain = DrainConfig::default();
    drain.takes() + drain.wait
}

/// The whole seconds that follow a word in a file.
fn seconds_after(file: &str, word: &str) -> Duration {
    let path = format!("{}/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).expect("it is there");
    let (_, after) = text.split_once(word).expect("it says so");
    let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
    Duration::from_secs(digits.parse().expect("a number"))
}

#[test]
fn every_platform_waits_for_the_whole_drain() {
    for (file, word) in [
        ("deploy/tidings.service", "TimeoutStopSec="),
        ("deploy/compose.yaml", "stop_grace_period: "),
        ("deploy/Dockerfile", "docker stop --time "),
        (
            "deploy/kubernetes/deployment.yaml",
            "terminationGracePeriodSeconds: ",
        ),
        ("docs/operations.md", "docker stop --time "),
        ("docs/operations.md", "terminationDrainDuration: "),
    ] {
        let waits = seconds_after(file, word);
        assert!(
            waits >= drain(),
            "{file} waits {waits:?}, and a drain takes {:?}",
            drain()
        );
    }
}
