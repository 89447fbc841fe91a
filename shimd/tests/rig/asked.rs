//! Rows of questions that are asked of shimd and of the original, and the status codes of their answers.

use tonic::Code::{self, Ok as Fine};
use tonic::Status;

use super::Lab;

/// Makes two tests of each function: it asks Debian's containerd, which proves it, and shimd.
#[allow(unused_macros, reason = "each test file uses a part of the rig")]
macro_rules! on_both {
    ($($name:ident)*) => {
        mod of_containerd { $(#[tokio::test] async fn $name() {
            let Some(lab) = $crate::rig::Lab::start_debians_with_lease().await else { return };
            $crate::rig::asked::ask(lab, true, async |asked| super::$name(asked).await).await;
        })* }
        mod of_shimd { $(#[tokio::test] async fn $name() {
            let lab = $crate::rig::Lab::start_with_lease().await;
            $crate::rig::asked::ask(lab, false, async |asked| super::$name(asked).await).await;
        })* }
    };
}
#[allow(unused_imports, reason = "each test file uses a part of the rig")]
pub(crate) use on_both;

/// The same of a containerd 2.x.
#[allow(unused_macros, reason = "each test file uses a part of the rig")]
macro_rules! on_newer {
    ($($name:ident)*) => {
        mod of_containerd { $(#[tokio::test] async fn $name() {
            let Some(lab) = $crate::rig::Lab::start_theirs_with_lease().await else { return };
            $crate::rig::asked::ask(lab, true, async |asked| super::$name(asked).await).await;
        })* }
        mod of_shimd { $(#[tokio::test] async fn $name() {
            let lab = $crate::rig::Lab::start_with_lease().await;
            $crate::rig::asked::ask(lab, false, async |asked| super::$name(asked).await).await;
        })* }
    };
}
#[allow(unused_imports, reason = "each test file uses a part of the rig")]
pub(crate) use on_newer;

/// A supervisor, and the answers that were others than expected.
pub(crate) struct Asked {
    pub(crate) lab: Lab,
    pub(crate) is_theirs: bool,
    wrong: Vec<String>,
}

impl Asked {
    pub(crate) fn expect<T>(&mut self, what: &str, answer: Result<T, Status>, code: Code) {
        self.expect_either(what, answer, code, code);
    }

    /// Where shimd says more than containerd does: a client that knows only containerd takes any code that it does not
    /// expect as it takes `Unknown`.
    pub(crate) fn expect_either<T>(&mut self, what: &str, answer: Result<T, Status>, theirs: Code, ours: Code) {
        let (told, words) =
            answer.map_or_else(|status| (status.code(), status.message().to_owned()), |_| (Fine, String::new()));
        let code = if self.is_theirs { theirs } else { ours };
        if told != code {
            self.wrong.push(format!("{what}: {told:?} and not {code:?}: {words}"));
        }
    }
}

pub(crate) async fn ask(lab: Lab, is_theirs: bool, rows: impl AsyncFnOnce(&mut Asked)) {
    let mut asked = Asked { lab, is_theirs, wrong: Vec::new() };
    rows(&mut asked).await;
    assert!(asked.wrong.is_empty(), "{}", asked.wrong.join("\n"));
}
