//! Words that are no user.

use crate::stage::stage;

/// CVE-2026-30892: a user that is no number ends up as root.
#[test]
fn a_user_that_is_no_number_is_refused() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc wraps a number that is too large to 0") {
        return;
    }
    stage.args(&["sleep", "1000"]);
    stage.detached();
    for (user, ids) in [("1", "1 0\n"), ("1:2", "1 2\n"), ("4294967294:0", "4294967294 0\n"), ("", "0 0\n")] {
        let outcome = stage.call(&["exec", "-u", user, stage.id(), "sh", "-c", "echo $(id -u) $(id -g)"]);
        assert_eq!(outcome.ok().out, ids, "{user:?}");
    }
    let hostile = ["1:", ":1", "0x1", " 1", "1 ", "+1", "4294967295", "4294967296", "-1", "root", "u", "1:x", "1:2:3"];
    for user in hostile {
        let outcome = stage.call(&["exec", "-u", user, stage.id(), "id", "-u"]);
        assert_eq!((outcome.status, outcome.out.as_str()), (255, ""), "{user:?}: {outcome:?}");
    }
    stage.delete();
    // As a C library's strtoul(3) in 32 bits reads them, most of the same words are root.
    assert!(hostile.iter().filter(|user| careless_number(user) == 0).count() >= 4);
}

/// Digits as far as there are any, and what is too large wraps.
fn careless_number(text: &str) -> u32 {
    let digits = text.bytes().take_while(u8::is_ascii_digit);
    digits.fold(0, |number: u32, digit| number.wrapping_mul(10).wrapping_add(u32::from(digit - b'0')))
}
