//! Tells a person what happens: a title for each step, the command as it would be typed, what came of it, and what was
//! checked.

use std::io::{IsTerminal as _, Write as _};

use integration::{Call, Output};

/// The teller. It counts what it checked.
#[derive(Default)]
pub(crate) struct Narrator {
    steps: u32,
    checks: u32,
}

impl Narrator {
    pub(crate) fn step(&mut self, title: &str) {
        self.steps += 1;
        println!("\n{}", strong(&format!("{}. {title}", self.steps)));
    }

    /// Shows a command and runs it; it must succeed.
    pub(crate) fn run(&self, shown: &str, call: Call) -> Result<Output, String> {
        self.run_for(0, shown, call)
    }

    /// Shows a command and runs it; it must end with `code`.
    pub(crate) fn run_for(&self, code: i32, shown: &str, call: Call) -> Result<Output, String> {
        self.command(shown);
        let output = call.output();
        self.show(&output.text());
        self.show(&output.errors());
        if output.code == code { Ok(output) } else { Err(format!("`{shown}` ended with {}, not {code}", output.code)) }
    }

    pub(crate) fn command(&self, shown: &str) {
        println!("   $ {shown}");
    }

    /// Shows the first lines of some output.
    pub(crate) fn show(&self, text: &str) {
        const LINES: usize = 24;
        for line in text.lines().take(LINES) {
            println!("     {}", line.trim_end_matches('\r'));
        }
        let more = text.lines().count().saturating_sub(LINES);
        if more > 0 {
            println!("     … and {more} more lines");
        }
        let _ = std::io::stdout().flush();
    }

    /// One thing that is so, or the end.
    pub(crate) fn check(&mut self, what: &str, is_so: bool) -> Result<(), String> {
        if !is_so {
            return Err(format!("not so: {what}"));
        }
        self.checks += 1;
        println!("   {} {what}", if std::io::stdout().is_terminal() { "\u{1b}[32m✓\u{1b}[0m" } else { "✓" });
        Ok(())
    }

    pub(crate) fn end(&self) {
        println!("\n{}", strong(&format!("{} steps, {} checks, all good", self.steps, self.checks)));
    }
}

fn strong(text: &str) -> String {
    if std::io::stdout().is_terminal() { format!("\u{1b}[1m{text}\u{1b}[0m") } else { text.to_owned() }
}
