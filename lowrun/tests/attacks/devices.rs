//! Devices of the host that no rule names.

use serde_json::{Value, json};

use crate::stage::{Stage, stage};

/// Devices that machines have and that open without a capability: kind, major, minor.
const DEVICES: [(&str, u32, u32); 5] = [("c", 1, 11), ("c", 10, 229), ("c", 10, 235), ("c", 10, 237), ("b", 7, 0)];

/// Makes each device of [`DEVICES`] and names those that open.
fn opened(stage: &mut Stage, rules: Value) -> String {
    stage.config["linux"]["resources"]["devices"] = rules;
    let script: String = DEVICES
        .iter()
        .map(|(kind, major, minor)| {
            let name = format!("/tmp/{kind}-{major}-{minor}");
            format!(
                "[ -e {name} ] || mknod {name} {kind} {major} {minor}; (exec 3<{name}) 2>/dev/null && echo {name}; "
            )
        })
        .collect();
    stage.script(&(script + "true"));
    stage.output()
}

/// GHSA-g54h-m393-cpwq: without a rule that denies everything, the rules are taken for exceptions of an open list.
#[test]
fn a_device_that_no_rule_allows_is_closed() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc begins with an open list on v1 where the first rule allows") {
        return;
    }
    let held = json!(["CAP_MKNOD", "CAP_SYSLOG", "CAP_DAC_OVERRIDE"]);
    stage.config["process"]["capabilities"] = json!({ "bounding": held, "effective": held, "permitted": held });
    // With an open list, said so, some of these devices open: the look is no empty one.
    let open = opened(&mut stage, json!([{ "allow": true, "access": "rwm" }]));
    assert_ne!(open, "", "this machine has none of the devices");
    let one = json!({ "allow": true, "type": "c", "major": 1, "minor": 9, "access": "r" });
    for rules in [json!([]), json!(null), json!([one]), json!([{ "allow": false, "access": "rwm" }, one])] {
        assert_eq!(opened(&mut stage, rules.clone()), "", "{rules}");
    }
    // And one that is allowed opens, alone.
    let first = DEVICES.iter().find(|(kind, major, minor)| open.contains(&format!("{kind}-{major}-{minor}"))).unwrap();
    let (kind, major, minor) = first;
    let rule = json!([{ "allow": true, "type": kind, "major": major, "minor": minor, "access": "r" }]);
    assert_eq!(opened(&mut stage, rule), format!("/tmp/{kind}-{major}-{minor}\n"));
}
