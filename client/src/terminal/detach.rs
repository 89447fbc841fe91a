//! The keys that leave a container running: docker's notation (`ctrl-p,ctrl-q`), and finding them in what is typed.

/// docker's default.
const DEFAULT: &str = "ctrl-p,ctrl-q";
/// Longest sequence that makes sense; typed keys are held back while they could become it.
const KEYS_MAX: usize = 32;

/// A sequence of bytes that means "detach".
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DetachKeys(Vec<u8>);

impl Default for DetachKeys {
    fn default() -> DetachKeys {
        // The default is well formed, as the tests hold.
        DetachKeys::parse(DEFAULT).unwrap_or(DetachKeys(vec![16, 17]))
    }
}

impl DetachKeys {
    /// Reads keys separated by commas: a character, or `ctrl-` and one of `a`–`z`, `@`, `[`, `\`, `]`, `^`, `_`.
    pub(crate) fn parse(text: &str) -> Result<DetachKeys, String> {
        let keys = text.split(',').map(key).collect::<Result<Vec<u8>, String>>()?;
        if keys.len() > KEYS_MAX {
            return Err(format!("more than {KEYS_MAX} keys"));
        }
        Ok(DetachKeys(keys))
    }
}

fn key(word: &str) -> Result<u8, String> {
    let unknown = || format!("unknown key \"{word}\": write a character, or ctrl- and one of a-z @ [ \\ ] ^ _");
    if let Some(with_ctrl) = word.strip_prefix("ctrl-") {
        return match with_ctrl.as_bytes() {
            [letter @ b'a'..=b'z'] => Ok(letter - b'a' + 1),
            [symbol @ (b'@' | b'[' | b'\\' | b']' | b'^' | b'_')] => Ok(symbol - b'@'),
            _ => Err(unknown()),
        };
    }
    match word.as_bytes() {
        [byte] => Ok(*byte),
        _ => Err(unknown()),
    }
}

/// Finds the keys in typed bytes. Bytes that could begin the sequence are held back until the next ones decide.
pub(crate) struct Matcher {
    keys: DetachKeys,
    held: Vec<u8>,
}

/// What typed bytes came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Typed {
    /// For the program.
    Input(Vec<u8>),
    /// The sequence is complete; what was typed before it is for the program.
    Detach(Vec<u8>),
}

impl Matcher {
    pub(crate) fn new(keys: DetachKeys) -> Matcher {
        Matcher { keys, held: Vec::new() }
    }

    /// Takes in the next typed bytes.
    pub(crate) fn feed(&mut self, typed: &[u8]) -> Typed {
        let mut through = Vec::with_capacity(typed.len());
        for &byte in typed {
            self.held.push(byte);
            if self.held == self.keys.0 {
                self.held.clear();
                return Typed::Detach(through);
            }
            // Let go of the oldest bytes until the rest could be the beginning again.
            let letting_go = (0..=self.held.len()).find(|&at| self.keys.0.starts_with(&self.held[at..])).unwrap_or(0);
            through.extend(self.held.drain(..letting_go));
        }
        Typed::Input(through)
    }

    /// What is still held back when the input ends.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_in_dockers_notation() {
        for (text, keys) in [
            ("ctrl-p,ctrl-q", Ok(vec![16, 17])),
            ("a", Ok(vec![b'a'])),
            ("ctrl-@,ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_", Ok(vec![0, 27, 28, 29, 30, 31])),
            ("ctrl-a,x,ctrl-z", Ok(vec![1, b'x', 26])),
            ("ctrl-", Err(())),
            ("ctrl-A", Err(())),
            ("ab", Err(())),
            ("", Err(())),
            ("é", Err(())),
        ] {
            assert_eq!(DetachKeys::parse(text).map(|keys| keys.0).map_err(drop), keys, "{text}");
        }
        assert_eq!(DetachKeys::default().0, [16, 17]);
    }

    #[test]
    fn keys_are_found_also_in_pieces() {
        let mut matcher = Matcher::new(DetachKeys::default());
        assert_eq!(matcher.feed(b"ls\n\x10"), Typed::Input(b"ls\n".to_vec()));
        assert_eq!(matcher.feed(b"x"), Typed::Input(b"\x10x".to_vec()));
        assert_eq!(matcher.feed(b"\x10\x10"), Typed::Input(b"\x10".to_vec()));
        assert_eq!(matcher.feed(b"\x11rest"), Typed::Detach(Vec::new()));
    }

    #[test]
    fn what_is_held_at_the_end_is_not_lost() {
        let mut matcher = Matcher::new(DetachKeys::default());
        assert_eq!(matcher.feed(b"a\x10"), Typed::Input(b"a".to_vec()));
        assert_eq!(matcher.finish(), b"\x10");
    }

    proptest::proptest! {
        /// Without the sequence in it, what is typed comes through whole, however it is cut.
        #[test]
        fn nothing_typed_is_lost(typed in proptest::collection::vec(0u8..4, 0..64), cut in 1usize..8) {
            let mut matcher = Matcher::new(DetachKeys(vec![1, 1, 2]));
            let mut through = Vec::new();
            let whole = typed.windows(3).all(|window| window != [1, 1, 2]);
            for piece in typed.chunks(cut) {
                match matcher.feed(piece) {
                    Typed::Input(bytes) => through.extend(bytes),
                    Typed::Detach(bytes) => { through.extend(bytes); proptest::prop_assert!(!whole); return Ok(()); }
                }
            }
            through.extend(matcher.finish());
            proptest::prop_assert!(whole);
            proptest::prop_assert_eq!(through, typed);
        }
    }
}
