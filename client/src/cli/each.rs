//! Commands that do one thing to each of several containers or images: all at once, told in the order they were named;
//! what fails does not keep the others from it.

use futures_util::future::join_all;

use crate::error::{EXIT_FAILURE, Error, report};
use crate::output::print_line;

/// Does `one` to each name and prints the line it answers. The exit code is 1 when any of them failed.
pub(super) async fn each<F>(names: &[String], one: impl Fn(String) -> F) -> Result<u8, Error>
where
    F: Future<Output = Result<String, Error>>,
{
    let mut failed = false;
    for answer in join_all(names.iter().cloned().map(one)).await {
        match answer {
            Ok(line) => print_line(&line)?,
            Err(error) => {
                report(&error);
                failed = true;
            }
        }
    }
    if failed { Err(Error::Reported(EXIT_FAILURE)) } else { Ok(0) }
}
