//! What a terminal shows in the end.
//!
//! Programs draw progress bars again and again over the same lines. This plays their bytes on a screen without a width: it
//! knows the few control sequences that they use to move and to erase (ECMA-48), and drops all others.

/// A screen that grows downwards.
#[derive(Default)]
struct Screen {
    lines: Vec<Vec<char>>,
    row: usize,
    column: usize,
}

/// The lines that are not empty.
pub(crate) fn last_frame(bytes: &str) -> String {
    let mut screen = Screen::default();
    let mut rest = bytes.chars().peekable();
    while let Some(character) = rest.next() {
        match character {
            '\n' => screen.row += 1,
            '\r' => screen.column = 0,
            '\u{8}' => screen.column = screen.column.saturating_sub(1),
            '\u{1b}' if rest.next_if_eq(&'[').is_some() => {
                let mut parameter = String::new();
                let is_parameter = |c: &char| !('\u{40}'..='\u{7e}').contains(c);
                while let Some(part) = rest.next_if(is_parameter) {
                    parameter.push(part);
                }
                screen.control(rest.next(), parameter.parse().unwrap_or(1));
            }
            other if !other.is_control() => screen.put(other),
            _ => {}
        }
    }
    let lines = screen.lines.iter().map(|line| line.iter().collect::<String>().trim_end().to_owned());
    lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
}

impl Screen {
    fn line(&mut self) -> &mut Vec<char> {
        if self.lines.len() <= self.row {
            self.lines.resize(self.row + 1, Vec::new());
        }
        &mut self.lines[self.row]
    }

    fn put(&mut self, character: char) {
        let column = self.column;
        let line = self.line();
        if line.len() <= column {
            line.resize(column + 1, ' ');
        }
        line[column] = character;
        self.column += 1;
    }

    fn control(&mut self, sequence: Option<char>, count: usize) {
        match sequence {
            Some('A') => self.row = self.row.saturating_sub(count),
            Some('B') => self.row += count,
            Some('F') => (self.row, self.column) = (self.row.saturating_sub(count), 0),
            Some('E') => (self.row, self.column) = (self.row + count, 0),
            Some('G') => self.column = count - 1,
            Some('K') if count == 2 => self.line().clear(),
            Some('K') => {
                let column = self.column;
                self.line().truncate(column);
            }
            Some('J') => {
                let (row, column) = (self.row, self.column);
                self.line().truncate(column);
                self.lines.truncate(row + 1);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::last_frame;

    #[test]
    fn a_bar_that_is_drawn_again_shows_once() {
        assert_eq!(last_frame("a: 10%\r\nb: 1%\r\n\u{1b}[2Aa: 100%\u{1b}[K\r\nb: 50%\r\n"), "a: 100%\nb: 50%");
    }

    #[test]
    fn colours_and_questions_do_not_show() {
        assert_eq!(last_frame("\u{1b}[1;32mgreen\u{1b}[0m \u{1b}[6n\u{1b}[?25lx"), "green x");
    }

    #[test]
    fn a_line_that_is_erased_is_gone() {
        assert_eq!(last_frame("gone\r\u{1b}[2Kleft"), "left");
    }
}
