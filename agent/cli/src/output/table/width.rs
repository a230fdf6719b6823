//! How wide to print, and whether in colour.

use std::io::IsTerminal;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use headroom_core::findings::Severity;

/// How wide to print, and whether in colour.
#[derive(Debug, Clone, Copy)]
pub struct Width {
    columns: usize,
    colour: bool,
}

impl Width {
    /// As stdout wants it: the terminal's width (60 to 140), 80 and no colour when piped.
    pub fn of_stdout() -> Self {
        let terminal = std::io::stdout().is_terminal();
        let columns = terminal_size::terminal_size().filter(|_| terminal).map_or(80, |(width, _)| usize::from(width.0));
        let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { columns: columns.clamp(60, 140), colour }
    }

    /// Fixed, without colour.
    pub fn plain(columns: usize) -> Self {
        Self { columns, colour: false }
    }

    pub(super) fn paint(self, severity: Severity, text: &str) -> String {
        let code = match severity {
            Severity::Critical => "1;31",
            Severity::Warning => "1;33",
            Severity::Unknown => "1;35",
            Severity::Info => "36",
        };
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub(super) fn strong(self, text: &str) -> String {
        if self.colour { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub(super) fn wrap(self, out: &mut String, first: &str, rest: &str, text: &str) {
        let options = textwrap::Options::new(self.columns)
            .initial_indent(first)
            .subsequent_indent(rest)
            .word_splitter(textwrap::WordSplitter::NoHyphenation);
        for line in textwrap::wrap(&clean(text), options) {
            out.push_str(&line);
            out.push('\n');
        }
    }

    pub(super) fn grid(self, headings: &[&str], right: &[usize], rows: impl Iterator<Item = Vec<String>>) -> String {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
        table.set_width(u16::try_from(self.columns).unwrap_or(80));
        table.set_header(headings.iter().copied());
        for row in rows {
            table.add_row(row.iter().map(|cell| clean(cell)));
        }
        for (index, column) in table.column_iter_mut().enumerate() {
            column.set_padding((if index == 0 { 2 } else { 1 }, 1));
            if right.contains(&index) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned() + "\n").collect();
        lines.concat()
    }
}

/// Foreign names must not steer the terminal: control characters are shown, not obeyed.
pub(super) fn clean(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}
