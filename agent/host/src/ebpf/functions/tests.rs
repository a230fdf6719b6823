//! Texts of `/proc/kallsyms` as kernels print them.

use std::io::Error;

use super::*;

const DELETE: &str = "nf_ct_delete";

/// Neighbours of the functions in the list of a real kernel (6.18, built in), and lines that no kernel writes.
const NOISE: &str = "\
ffffffff81f353b0 t __pfx___nf_ct_delete_from_lists
ffffffff81f353c0 t __nf_ct_delete_from_lists
ffffffff81f36220 T __pfx_nf_ct_delete
ffffffff82a10f80 r __ksymtab_nf_ct_delete
ffffffff82f2b0c0 d nf_ct_delete

ffffffff82f2b0c0
0000000000000000 A fixed_percpu_data
";

fn functions(lines: &str) -> Functions {
    Functions::of(format!("{NOISE}{lines}").as_bytes())
}

fn target(lines: &str) -> Result<(Vec<String>, bool), String> {
    let target = functions(lines).target_or_part(DELETE);
    target.map(|target| (target.names, target.part)).map_err(|error| error.to_string())
}

fn plain() -> Result<(Vec<String>, bool), String> {
    Ok((vec![DELETE.to_owned(), format!("nf_conntrack:{DELETE}")], false))
}

/// Exercises a function under its name, built in, in a module, with its cold half, and without a list. If this fails, nothing is
/// counted on kernels where nothing is in the way.
#[test]
fn a_function_is_asked_for_by_its_name() {
    for lines in [
        "ffffffff81f36230 T nf_ct_delete\n",
        "ffffffffc0a01230 t nf_ct_delete\t[nf_conntrack]\n",
        "ffffffffc0a01230 T nf_ct_delete\t[nf_conntrack]\nffffffffc0a0f123 t nf_ct_delete.cold\t[nf_conntrack]\n",
        // No permission to see addresses.
        "0000000000000000 T nf_ct_delete\n",
        "ffffffff81f36230 T nf_ct_delete",
        // Missing: the kernel says so when it is asked.
        "",
        "ffffffff81f36230 t nf_ct_delete.isra.0.cold\n",
        // Nothing begins like it.
        "ffffffff81f36230 t nf_ct_delete_all\n",
    ] {
        assert_eq!(target(lines), plain(), "{lines}");
    }
    assert_eq!(Functions::of(&b""[..]).target(CT_INSERT.hook).unwrap().names[0], "__nf_conntrack_hash_insert");
}

/// Exercises Debian's 5.10, where callers enter the function behind its first test. If this fails, ends are missed there.
#[test]
fn a_split_function_is_probed_in_the_part_that_all_callers_enter() {
    let part = |name: &str| Ok((vec![name.to_owned(), format!("nf_conntrack:{name}")], true));
    for (lines, name) in [
        ("ffffffffc0a01230 t nf_ct_delete.part.0\t[nf_conntrack]\n", "nf_ct_delete.part.0"),
        (
            "ffffffffc0a01230 t nf_ct_delete.part.0\t[nf_conntrack]\nffffffffc0a01330 T nf_ct_delete\t[nf_conntrack]\n",
            "nf_ct_delete.part.0",
        ),
        ("ffffffff81f36230 t nf_ct_delete.part.7\n", "nf_ct_delete.part.7"),
    ] {
        assert_eq!(target(lines), part(name), "{lines}");
    }
    // Of the others no part will do: what it gets as arguments is not known.
    let lines = "ffffffffc0a01230 t __nf_conntrack_confirm.part.0\t[nf_conntrack]\n";
    assert!(matches!(functions(lines).target(CT_CONFIRM.hook), Err(LoadError::FunctionChanged { .. })));
}

/// Exercises functions with other arguments than in the source. If this fails, a program takes something else for an entry.
#[test]
fn a_function_with_changed_arguments_is_left_alone_and_named() {
    for (lines, named) in [
        ("ffffffff81f36230 t nf_ct_delete.isra.0\n", "nf_ct_delete.isra.0"),
        ("ffffffff81f36230 t nf_ct_delete.constprop.0\t[nf_conntrack]\n", "nf_ct_delete.constprop.0"),
        (
            "ffffffff81f36230 t nf_ct_delete.isra.0\nffffffff81f3623f t nf_ct_delete.isra.0.cold\n",
            "nf_ct_delete.isra.0",
        ),
        // Beside the function, which the other callers enter.
        ("ffffffff81f36230 T nf_ct_delete\nffffffff81f36330 t nf_ct_delete.constprop.0\n", "nf_ct_delete.constprop.0"),
        (
            "ffffffff81f36230 T nf_ct_delete\t[nf_conntrack]\nffffffff81f36330 t nf_ct_delete.isra.0\t[nf_conntrack]\n",
            "nf_ct_delete.isra.0",
        ),
        // Beside the part, which the other callers enter.
        (
            "ffffffff81f36230 t nf_ct_delete.constprop.0\nffffffff81f36330 t nf_ct_delete.part.0\n",
            "nf_ct_delete.constprop.0",
        ),
        (
            "ffffffff81f36230 t nf_ct_delete.part.0.isra.0\nffffffff81f36330 T nf_ct_delete\n",
            "nf_ct_delete.part.0.isra.0",
        ),
    ] {
        let error = target(lines).unwrap_err();
        assert!(error.contains(&format!("`{named}`")) && !error.contains("cold"), "{error}");
    }
}

/// Exercises names that several functions have. If this fails, another function is taken for conntrack's.
#[test]
fn of_several_functions_of_a_name_it_is_the_one_in_the_module() {
    let both = "ffffffff81f36230 t nf_ct_delete\nffffffffc0a01230 T nf_ct_delete\t[nf_conntrack]\n";
    assert_eq!(target(both), Ok((vec![format!("nf_conntrack:{DELETE}")], false)));
    let another = "ffffffffc0b01230 t nf_ct_delete\t[other]\nffffffffc0a01230 T nf_ct_delete\t[nf_conntrack]\n";
    assert_eq!(target(another), Ok((vec![format!("nf_conntrack:{DELETE}")], false)));
    for twice in [
        "ffffffff81f36230 T nf_ct_delete\nffffffff81f37230 t nf_ct_delete\n",
        "ffffffffc0a01230 T nf_ct_delete\t[nf_conntrack]\nffffffffc0a02230 t nf_ct_delete\t[nf_conntrack]\n",
    ] {
        assert!(target(twice).unwrap_err().contains("several functions named `nf_ct_delete`"), "{twice}");
    }
}

/// Exercises a list that is not one. If this fails, memory grows with what is read.
#[test]
fn names_beyond_the_bound_are_left_out() {
    let lines: String = (0..1000).map(|number| format!("0 t nf_ct_delete.constprop.{number}\n")).collect();
    assert_eq!(functions(&lines).listed.len(), MAX_NAMES);
}

/// What the kernel says to each name; gives what came of it, and the names that were tried.
fn attached(answers: &[(&str, i32)]) -> (Result<(), Option<i32>>, Vec<String>) {
    let mut tried = Vec::new();
    let target = functions("ffffffffc0a01230 T nf_ct_delete\t[nf_conntrack]\n").target_or_part(DELETE).unwrap();
    let attach = |name: &str| {
        tried.push(name.to_owned());
        let answer = answers.iter().find(|(of, _)| *of == name).map(|(_, errno)| *errno);
        answer.map_or(Ok(()), |errno| Err(Error::from_raw_os_error(errno)))
    };
    let outcome = attach_under(&target.names, |error: &Error| Some(error.kind()), attach);
    (outcome.map_err(|error| error.raw_os_error()), tried)
}

/// Exercises kernels that do not find a module's function by its name alone: 6.1.60 to 6.1.70 and their siblings count only what is
/// built in (ENOENT), others find two (EADDRNOTAVAIL). No such kernel is in the matrix of `cargo xtask kernels`: what they
/// answer is told here. If this fails, they count nothing although they could.
#[test]
fn a_name_that_is_not_found_or_ambiguous_is_tried_with_its_module() {
    let with_module = format!("nf_conntrack:{DELETE}");
    let both = vec![DELETE.to_owned(), with_module.clone()];
    assert_eq!(attached(&[]), (Ok(()), vec![DELETE.to_owned()]));
    for errno in [libc::ENOENT, libc::EADDRNOTAVAIL] {
        assert_eq!(attached(&[(DELETE, errno)]), (Ok(()), both.clone()));
        // 6.1.60 to 6.1.70 find it neither way; what is said is what they said to the name.
        assert_eq!(attached(&[(DELETE, errno), (&with_module, libc::EINVAL)]), (Err(Some(errno)), both.clone()));
    }
    // Another name does not help against this.
    assert_eq!(attached(&[(DELETE, libc::EPERM)]), (Err(Some(libc::EPERM)), vec![DELETE.to_owned()]));
}
