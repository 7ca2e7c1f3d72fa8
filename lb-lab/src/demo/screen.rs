// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the demo looks like: headings, text, commands with their answers, a spinner.
//!
//! Colour only where the person's terminal wants it (`NO_COLOR` and `TERM=dumb` are heard);
//! into a file or a pipe the same words go, without the spinner.
//! **Invariant:** nothing here decides anything. Read next: the demo's front.

use std::fmt::Display;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use console::Style;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Columns of running text, short enough for a terminal of 80.
const WIDTH: usize = 74;
const MARGIN: &str = "   ";
const CODE: &str = "     ";

/// Where the demo is told.
pub struct Screen {
    out: Box<dyn Write>,
    terminal: bool,
    colour: bool,
    number: u8,
}

impl Screen {
    /// Standard output.
    pub fn stdout() -> Self {
        let term = console::Term::stdout();
        Self {
            colour: console::colors_enabled(),
            terminal: term.is_term(),
            out: Box::new(io::stdout()),
            number: 0,
        }
    }

    fn paint(&self, style: &Style, text: impl Display) -> String {
        let style = style.clone().force_styling(self.colour);
        style.apply_to(text).to_string()
    }

    fn line(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "{}", text.trim_end())?;
        // What has happened is to be seen when it has happened, also through a pipe.
        self.out.flush()
    }

    /// The first line of all.
    pub(super) fn title(&mut self, text: &str) -> io::Result<()> {
        let text = self.paint(&Style::new().bold(), text);
        self.line(&text)
    }

    /// The next numbered step.
    pub(super) fn heading(&mut self, text: &str) -> io::Result<()> {
        self.number += 1;
        let number = self.paint(&Style::new().cyan().bold(), self.number);
        let text = self.paint(&Style::new().bold(), text);
        self.line("")?;
        self.line(&format!("{number}  {text}"))
    }

    /// A paragraph, broken into lines.
    pub(super) fn say(&mut self, text: &str) -> io::Result<()> {
        for line in fill(text, WIDTH - MARGIN.len()) {
            self.line(&format!("{MARGIN}{line}"))?;
        }
        Ok(())
    }

    /// An empty line.
    pub(super) fn gap(&mut self) -> io::Result<()> {
        self.line("")
    }

    /// Something that was checked and is as told.
    pub(super) fn done(&mut self, text: &str) -> io::Result<()> {
        let mark = self.paint(&Style::new().green().bold(), "✓");
        for (number, line) in fill(text, WIDTH - MARGIN.len() - 2).iter().enumerate() {
            let mark = if number == 0 { mark.as_str() } else { " " };
            self.line(&format!("{MARGIN}{mark} {line}"))?;
        }
        Ok(())
    }

    /// Lines of a file, a table or a program's output.
    pub(super) fn code(&mut self, text: &str) -> io::Result<()> {
        for line in text.lines() {
            self.line(&format!("{CODE}{line}"))?;
        }
        Ok(())
    }

    /// Changed lines of a file, red and green.
    pub(super) fn changes(&mut self, lines: &[String]) -> io::Result<()> {
        for line in lines {
            let style = if line.starts_with('-') {
                Style::new().red()
            } else {
                Style::new().green()
            };
            let line = self.paint(&style, line);
            self.line(&format!("{CODE}{line}"))?;
        }
        Ok(())
    }

    /// A command as it is run, in one or more lines; `at` says on which host.
    pub(super) fn command(&mut self, at: &str, lines: &str) -> io::Result<()> {
        let prompt = self.paint(&Style::new().dim(), format!("{at} $").trim_start());
        for (number, line) in lines.lines().enumerate() {
            let prompt = if number == 0 { prompt.as_str() } else { "  " };
            let line = self.paint(&Style::new().yellow(), line);
            self.line(&format!("{CODE}{prompt} {line}"))?;
        }
        Ok(())
    }

    /// Commands to copy, one per line, with what it is for above.
    pub(super) fn offer(&mut self, what: &str, line: &str) -> io::Result<()> {
        let what = self.paint(&Style::new().dim(), format!("# {what}"));
        self.line(&format!("{CODE}{what}"))?;
        for line in line.lines() {
            let line = self.paint(&Style::new().yellow(), line);
            self.line(&format!("{CODE}{line}"))?;
        }
        Ok(())
    }

    /// What a command answered; an error looks other than a success.
    pub(super) fn answer(&mut self, text: &str, success: bool) -> io::Result<()> {
        let style = if success {
            Style::new().green()
        } else {
            Style::new().red()
        };
        for line in text.lines() {
            let line = self.paint(&style, line);
            self.line(&format!("{CODE}{line}"))?;
        }
        Ok(())
    }

    /// The demo ends early.
    pub fn failed(&mut self, text: &str) -> io::Result<()> {
        let mark = self.paint(&Style::new().red().bold(), "✗");
        self.line("")?;
        for (number, line) in text.lines().enumerate() {
            let mark = if number == 0 { mark.as_str() } else { " " };
            self.line(&format!("{MARGIN}{mark} {line}"))?;
        }
        Ok(())
    }

    /// Does `work` with a spinner, or says so beforehand where there is no terminal.
    ///
    /// Returns the value and how long it took.
    pub(super) fn busy<T>(
        &mut self,
        text: &str,
        work: impl FnOnce() -> T,
    ) -> io::Result<(T, Duration)> {
        if !self.terminal {
            self.line(&format!("{MARGIN}… {text}"))?;
        }
        Ok(self.spin(text, work))
    }

    /// As [`Screen::busy`], for what takes less than a second: without a word into a pipe.
    pub(super) fn spin<T>(&self, text: &str, work: impl FnOnce() -> T) -> (T, Duration) {
        let start = Instant::now();
        if !self.terminal {
            let value = work();
            return (value, start.elapsed());
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout());
        let template = if self.colour {
            "   {spinner:.cyan} {msg} {elapsed:.dim}"
        } else {
            "   {spinner} {msg} {elapsed}"
        };
        // The template is a constant, but a wrong one is no reason to stop either.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(text.to_owned());
        bar.enable_steady_tick(Duration::from_millis(80));
        let value = work();
        bar.finish_and_clear();
        (value, start.elapsed())
    }
}

/// Breaks text at blanks into lines of at most `width` characters; a longer word stays whole.
fn fill(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let Some(last) = lines.last_mut() else { break };
        if last.is_empty() {
            last.push_str(word);
        } else if last.chars().count() + 1 + word.chars().count() <= width {
            last.push(' ');
            last.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

/// A time as a person reads it.
pub(super) fn seconds(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{} ms", time.as_millis())
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    #[derive(Clone, Default)]
    struct Paper(Rc<RefCell<Vec<u8>>>);

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.borrow_mut().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn told(colour: bool, tell: impl FnOnce(&mut Screen) -> io::Result<()>) -> String {
        let paper = Paper::default();
        let mut screen = Screen {
            out: Box::new(paper.clone()),
            terminal: false,
            colour,
            number: 0,
        };
        tell(&mut screen).unwrap();
        String::from_utf8(paper.0.take()).unwrap()
    }

    #[test]
    fn lines_break_at_blanks_and_long_words_stay_whole() {
        assert_eq!(fill("aa bb  cc\n d", 5), ["aa bb", "cc d"]);
        assert_eq!(fill("a /long/path b", 4), ["a", "/long/path", "b"]);
        assert_eq!(fill("", 4), [""]);
    }

    #[test]
    fn a_pipe_gets_the_same_words_without_colour_or_spinner() {
        let story = |screen: &mut Screen| {
            screen.heading("Pods")?;
            assert_eq!(screen.busy("making pods", || 7)?.0, 7);
            screen.command("client", "curl http://10.0.1.175")?;
            screen.answer("hostnames-0uton\n", true)?;
            screen.done("done")
        };
        let plain = told(false, story);
        let lines: Vec<_> = plain.lines().collect();
        assert_eq!(
            lines,
            [
                "",
                "1  Pods",
                "   … making pods",
                "     client $ curl http://10.0.1.175",
                "     hostnames-0uton",
                "   ✓ done"
            ]
        );
        let coloured = told(true, story);
        assert_ne!(coloured, plain);
        assert_eq!(console::strip_ansi_codes(&coloured), plain);
    }

    #[test]
    fn times_are_told_in_milliseconds_below_a_second() {
        assert_eq!(seconds(Duration::from_micros(45_600)), "45 ms");
        assert_eq!(seconds(Duration::from_millis(1_260)), "1.3 s");
    }
}
