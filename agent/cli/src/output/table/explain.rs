//! The pages of the catalogue.

use headroom_core::findings::catalog::Page;

use super::{Width, heading};

/// The list of findings.
pub fn catalogue(pages: &[Page]) -> String {
    let longest = pages.iter().map(|page| page.name.len()).max().unwrap_or_default();
    pages.iter().map(|page| format!("{:longest$} {}\n", page.name, page.title)).collect()
}

/// One page of the catalogue.
pub fn page(page: &Page, width: Width) -> String {
    let mut out = format!("{}\n{}\n", width.strong(page.name), page.title);
    for (title, text) in [("What it means", page.means), ("Why it matters", page.matters), ("What to do", page.remedy)]
    {
        heading(&mut out, title, width);
        width.wrap(&mut out, "  ", "  ", text);
    }
    out
}
