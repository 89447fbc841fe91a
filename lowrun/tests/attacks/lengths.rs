//! Words of a length that overflows something.

use lowrun::channel::{FromInit, decode, encode};
use lowrun::fault::{Code, Fault};
use serde_json::{Value, json};

use crate::stage::{Stage, stage};

const LENGTHS: [usize; 6] = [4096, 65_534, 65_535, 65_536, 65_537, 1_000_000];

fn fails_cleanly(stage: &Stage, what: &str) {
    let (outcome, lines) = stage.logged(&["run", stage.id()]);
    assert_eq!(outcome.status, 1, "{what}");
    stage.is_clean();
    if stage.is_ours() {
        let last = lines.last().unwrap();
        let told = last["msg"].as_str().unwrap();
        assert!(!told.contains("read the channel") && last["code"] != "SYSTEM_ERROR", "{what}: {last}");
    }
}

/// CVE-2021-43784: a length of 16 bits wraps, and what follows in the word is taken for a message of the runtime's own.
#[test]
fn words_of_any_length_are_told_or_work() {
    let Some(mut stage) = stage() else { return };
    for length in LENGTHS {
        let long = format!("/{}", "x".repeat(length));
        for (field, value) in [
            ("/mounts/0", json!({ "destination": "/mnt", "type": "bind", "source": long, "options": ["bind"] })),
            ("/mounts/0", json!({ "destination": long, "type": "tmpfs", "source": "tmpfs" })),
            ("/linux/namespaces/1", json!({ "type": "network", "path": long })),
            ("/linux/maskedPaths/0", json!(long)),
            ("/process/cwd", json!(long)),
            ("/hostname", json!(long)),
        ] {
            let before = std::mem::replace(stage.config.pointer_mut(field).unwrap(), value);
            fails_cleanly(&stage, &format!("{field} of {length} bytes"));
            *stage.config.pointer_mut(field).unwrap() = before;
        }
    }
    stage.config["process"]["env"] = json!(["PATH=/bin", format!("LONG={}", "x".repeat(100_000))]);
    stage.script("echo ${#LONG}");
    assert_eq!(stage.output(), "100000\n");
}

/// The framing that fell: a kind and a length of 16 bits before each text.
fn careless_frame(kind: u16, text: &[u8]) -> Vec<u8> {
    let length = (text.len() + 4) as u16;
    [&length.to_le_bytes(), &kind.to_le_bytes(), text].concat()
}

fn careless_kinds(mut wire: &[u8]) -> Vec<u16> {
    let mut kinds = Vec::new();
    while let [low, high, kind, zero, ..] = wire {
        let length = u16::from_le_bytes([*low, *high]).max(4).next_multiple_of(4) as usize;
        kinds.push(u16::from_le_bytes([*kind, *zero]));
        wire = wire.get(length..).unwrap_or_default();
    }
    kinds
}

/// CVE-2021-43784 between the two sides of lowrun: a text is never a second message.
#[test]
fn a_text_of_the_container_is_never_a_message() {
    const PATH: u16 = 1;
    const NAMESPACES: u16 = 2;
    let hidden = careless_frame(NAMESPACES, b"net:/proc/1/ns/net");
    let text = [hidden, vec![b'x'; 65_536]].concat();
    assert!(careless_kinds(&careless_frame(PATH, &text[..100])) == [PATH], "a short text is one message");
    assert!(careless_kinds(&careless_frame(PATH, &text[..65_536])).contains(&NAMESPACES), "a long one is two");
    for length in LENGTHS {
        let hostile = format!("{}\"}}}}{{\"Init\":{{\"pid\":1}}", "x".repeat(length));
        let message = FromInit::Fault(Fault::new(Code::MountFailed, hostile.clone()).cause(hostile));
        let wire = encode(&message).unwrap();
        assert!(matches!(decode(&wire), Some(FromInit::Fault(fault)) if fault.code == Code::MountFailed));
    }
    let two: [Value; 2] = [json!("Ready"), json!({ "Init": { "pid": 1 } })];
    assert!(decode(format!("{}{}", two[0], two[1]).as_bytes()).is_none(), "two messages in one are none");
}
