//! `headroom plan nat`, the real binary, for the tests of it.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may panic as tests do")]

use std::process::{Command, Output};

use serde_json::Value;

pub(crate) fn run(args: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_headroom"));
    command.args(["plan", "nat"]).args(args.split_whitespace()).env_remove("HEADROOM_LOG").output().unwrap()
}

/// The answer as JSON and the exit code.
pub(crate) fn plan(args: &str) -> (Value, i32) {
    let output = run(&format!("{args} -o json"));
    let text = String::from_utf8(output.stdout).unwrap();
    let answer = serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{args}: {error}: {text}{}", String::from_utf8_lossy(&output.stderr)));
    (answer, output.status.code().unwrap())
}

pub(crate) fn number(answer: &Value, key: &str) -> Option<u64> {
    assert!(answer.get(key).is_some(), "`{key}` is missing in {answer}");
    answer[key].as_u64()
}

pub(crate) fn notes(answer: &Value) -> String {
    answer["notes"].as_array().unwrap().iter().map(|note| note.as_str().unwrap()).collect::<Vec<_>>().join("\n")
}
