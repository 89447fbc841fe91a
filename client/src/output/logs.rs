//! A container's log with the time before each line.
//!
//! The log holds what the program wrote in the pieces it was read in; a line may span several, and its time is that of
//! the piece in which it begins.

use prost_types::Timestamp;

use super::time;

/// Puts times before the lines of one stream.
#[derive(Default)]
pub(crate) struct Stamper {
    /// The last piece did not end with a line end.
    inside_line: bool,
}

impl Stamper {
    /// `data` with `at` before each line that begins in it.
    pub(crate) fn stamp(&mut self, data: &[u8], at: &Timestamp) -> Vec<u8> {
        let stamp = format!("{} ", time::utc_fixed(at));
        let mut stamped = Vec::with_capacity(data.len() + stamp.len());
        for line in data.split_inclusive(|byte| *byte == b'\n') {
            if !self.inside_line {
                stamped.extend_from_slice(stamp.as_bytes());
            }
            stamped.extend_from_slice(line);
            self.inside_line = line.last() != Some(&b'\n');
        }
        stamped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_in_two_pieces_has_one_time() {
        let at = |nanos| Timestamp { seconds: 0, nanos };
        let mut stamper = Stamper::default();
        let mut text = stamper.stamp(b"a\nb", &at(1));
        text.extend(stamper.stamp(b"c\n", &at(2)));
        text.extend(stamper.stamp(b"d\n", &at(3)));
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "1970-01-01T00:00:00.000000001Z a\n1970-01-01T00:00:00.000000001Z bc\n1970-01-01T00:00:00.000000003Z d\n"
        );
    }
}
