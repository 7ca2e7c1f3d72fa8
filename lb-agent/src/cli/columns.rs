// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tables of many rows, written as the rows come.
//!
//! Widths are those of the first rows; a later cell that is wider pushes its own line only. In a
//! terminal that is too narrow the columns that do not fit go to a second line below, which keeps
//! columns below their heads, and words at the end of a line are wrapped.
//! **Invariant:** however many rows there are, only the first of them are held.

use std::io::{self, Write};

/// Rows that decide how wide columns are.
const SAMPLE: usize = 1024;
/// Between two columns.
const GAP: usize = 2;
/// What a second line begins with.
const INDENT: usize = 4;
/// Words are wrapped within no less.
const WORDS_MIN: usize = 40;

/// One column.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    head: &'static str,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    /// Aligned at the last digit.
    Number,
    /// Sentences: the last column, wrapped where the terminal ends.
    Words,
}

/// A column in its line: its number and width.
type Place = (usize, usize);

/// A column of text.
pub(super) const fn text(head: &'static str) -> Column {
    Column {
        head,
        kind: Kind::Text,
    }
}

/// A column of numbers.
pub(super) const fn number(head: &'static str) -> Column {
    Column {
        head,
        kind: Kind::Number,
    }
}

/// The last column of a table, if it holds sentences.
pub(super) const fn words(head: &'static str) -> Column {
    Column {
        head,
        kind: Kind::Words,
    }
}

/// Writes one table.
pub(super) struct Columns<'a, W> {
    out: W,
    heads: &'a [Column],
    /// Of the terminal, if there is one.
    width: Option<usize>,
    held: Vec<Vec<String>>,
    /// Columns with their widths, by line; none before the widths are known.
    lines: Option<Vec<Vec<Place>>>,
}

impl<'a, W: Write> Columns<'a, W> {
    pub(super) fn new(out: W, heads: &'a [Column], width: Option<usize>) -> Self {
        Self {
            out,
            heads,
            width,
            held: Vec::new(),
            lines: None,
        }
    }

    /// Adds a row; it has as many cells as there are columns.
    pub(super) fn push(&mut self, row: Vec<String>) -> io::Result<()> {
        if let Some(lines) = &self.lines {
            return write_row(&mut self.out, self.heads, lines, &row);
        }
        self.held.push(row);
        if self.held.len() == SAMPLE {
            self.write_held()?;
        }
        Ok(())
    }

    /// Writes what is held, and gives the writer back. Without rows there is nothing but the heads.
    pub(super) fn finish(mut self) -> io::Result<W> {
        if self.lines.is_none() {
            self.write_held()?;
        }
        Ok(self.out)
    }

    fn write_held(&mut self) -> io::Result<()> {
        let limit = self.width.unwrap_or(usize::MAX);
        let widths = self.heads.iter().enumerate().map(|(at, column)| {
            let cells = self.held.iter().filter_map(|row| row.get(at));
            let widest = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
            (at, column.kind, widest.max(column.head.len()))
        });
        let lines = fold(widths, limit);
        let heads: Vec<String> = self.heads.iter().map(|c| c.head.to_owned()).collect();
        write_row(&mut self.out, self.heads, &lines, &heads)?;
        for row in std::mem::take(&mut self.held) {
            write_row(&mut self.out, self.heads, &lines, &row)?;
        }
        self.lines = Some(lines);
        Ok(())
    }
}

/// Puts columns on lines of at most `limit` characters, each as far up as the ones before it allow.
fn fold(widths: impl Iterator<Item = (usize, Kind, usize)>, limit: usize) -> Vec<Vec<Place>> {
    let mut lines = vec![Vec::new()];
    let mut used = 0;
    for (at, kind, width) in widths {
        let needed = match kind {
            Kind::Text | Kind::Number => width,
            Kind::Words => width.min(WORDS_MIN),
        };
        let begins = match lines.last_mut() {
            Some(line) if used + needed <= limit || line.is_empty() => used,
            _ => {
                lines.push(Vec::new());
                INDENT
            }
        };
        let width = match kind {
            Kind::Text | Kind::Number => width,
            Kind::Words => width.min(limit.saturating_sub(begins)).max(needed),
        };
        if let Some(line) = lines.last_mut() {
            line.push((at, width));
        }
        used = begins + width + GAP;
    }
    lines
}

fn write_row(
    out: &mut impl Write,
    columns: &[Column],
    lines: &[Vec<Place>],
    row: &[String],
) -> io::Result<()> {
    for (number, line) in lines.iter().enumerate() {
        let mut text = String::new();
        if number > 0 {
            text.push_str(&" ".repeat(INDENT));
        }
        let mut wrapped = Vec::new();
        for (at, width) in line {
            let cell = row.get(*at).map_or("", String::as_str);
            let blank = " ".repeat(width.saturating_sub(cell.chars().count()));
            match columns.get(*at).map_or(Kind::Text, |column| column.kind) {
                Kind::Text => text.extend([cell, &blank]),
                Kind::Number => text.extend([&blank, cell]),
                Kind::Words => {
                    let below = " ".repeat(text.chars().count());
                    let mut pieces = wrap(cell, *width).into_iter();
                    text.extend(pieces.next());
                    wrapped.extend(pieces.map(|piece| format!("{below}{piece}")));
                }
            }
            text.push_str(&" ".repeat(GAP));
        }
        let text = text.trim_end();
        // A second line that says nothing is none.
        if number == 0 || !text.is_empty() {
            writeln!(out, "{text}")?;
        }
        for piece in wrapped {
            writeln!(out, "{piece}")?;
        }
    }
    Ok(())
}

/// Puts words on lines of at most `width` characters; one word alone may be longer.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let fits = |line: &String| line.chars().count() + 1 + word.chars().count() <= width;
        match lines.last_mut().filter(|line| fits(line)) {
            Some(line) => {
                line.push(' ');
                line.push_str(word);
            }
            None => lines.push(word.to_owned()),
        }
    }
    lines
}

/// A table as a text.
pub(super) fn table(
    columns: &[Column],
    width: Option<usize>,
    rows: impl Iterator<Item = Vec<String>>,
) -> String {
    let mut table = Columns::new(Vec::new(), columns, width);
    // Writing to memory cannot fail.
    for row in rows {
        table.push(row).ok();
    }
    let bytes = table.finish().unwrap_or_default();
    String::from_utf8(bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 3] = [text("NAME"), number("COUNT"), text("NOTES")];

    fn row(name: &str, count: &str, notes: &str) -> Vec<String> {
        [name, count, notes].map(str::to_owned).to_vec()
    }

    #[test]
    fn numbers_end_below_each_other_and_no_line_ends_in_blanks() {
        let rows = [row("a", "1", ""), row("longer", "1000000", "maglev")];
        let expected = "\
NAME      COUNT  NOTES
a             1
longer  1000000  maglev
";
        assert_eq!(table(&COLUMNS, None, rows.into_iter()), expected);
    }

    #[test]
    fn what_a_narrow_terminal_has_no_room_for_goes_below() {
        let rows = [row("a", "1", ""), row("longer", "1000000", "maglev")];
        let expected = "\
NAME      COUNT
    NOTES
a             1
longer  1000000
    maglev
";
        assert_eq!(table(&COLUMNS, Some(20), rows.into_iter()), expected);
        // One column is on each line, however narrow the terminal is.
        assert_eq!(
            fold([(0, Kind::Text, 9), (1, Kind::Text, 9)].into_iter(), 3).len(),
            2
        );
    }

    #[test]
    fn sentences_are_wrapped_below_where_they_begin() {
        const COLUMNS: [Column; 2] = [text("WHAT"), words("FOUND")];
        let sentence = "no program of an agent is on the cgroup: is it running at all?";
        let rows = [row("sockets", sentence, ""), row("rules", "none", "")];
        let expected = "\
WHAT     FOUND
sockets  no program of an agent is on the cgroup:
         is it running at all?
rules    none
";
        assert_eq!(table(&COLUMNS, Some(50), rows.into_iter()), expected);
        let narrow = table(
            &COLUMNS,
            Some(44),
            [row("sockets", sentence, "")].into_iter(),
        );
        assert!(
            narrow.contains("\n    no program of an agent is on the"),
            "{narrow}"
        );
        let wide = table(&COLUMNS, None, [row("sockets", sentence, "")].into_iter());
        assert_eq!(wide.lines().count(), 2, "{wide}");
    }

    #[test]
    fn rows_beyond_the_sample_are_written_as_they_come() {
        let mut table = Columns::new(Vec::new(), &COLUMNS, None);
        for _ in 0..SAMPLE {
            table.push(row("a", "1", "x")).unwrap();
        }
        assert!(table.held.is_empty());
        table.push(row("much wider", "2", "y")).unwrap();
        let text = String::from_utf8(table.finish().unwrap()).unwrap();
        assert_eq!(text.lines().count(), SAMPLE + 2);
        assert_eq!(text.lines().last(), Some("much wider      2  y"));
    }
}
