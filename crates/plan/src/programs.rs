//! Programs among a cell's parameters: the digests of their files become part of their addresses.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use victim::FileFault;

/// Every table of a program below `value`, wherever one stands.
fn each(
    value: &mut Value,
    visit: &mut dyn FnMut(&mut Value, &game::Program) -> Result<(), FileFault>,
) -> Result<(), FileFault> {
    if value.get("name").and_then(Value::as_str) == Some("program") && value.get("command").is_some() {
        let program = program(value).map_err(FileFault::Wrong)?;
        return visit(value, &program);
    }
    match value {
        Value::Object(table) => table.values_mut().try_for_each(|value| each(value, visit)),
        Value::Array(items) => items.iter_mut().try_for_each(|value| each(value, visit)),
        _ => Ok(()),
    }
}

/// The program that a table describes, as the stages will read it.
fn program(table: &Value) -> Result<game::Program, String> {
    let mut table = table.clone();
    table.as_object_mut().map(|fields| fields.shift_remove("name"));
    let program: game::Program = serde_json::from_value(table).map_err(|fault| format!("program: {fault}"))?;
    program.check().map_err(|fault| format!("program: {fault}"))?;
    Ok(program)
}

/// Writes the digests of every program's files into its parameters; a digest that stands there already must be right.
///
/// # Errors
/// What is wrong with a program, or with a file of it.
pub fn digest(value: &mut Value, data_root: Option<&Path>) -> Result<(), FileFault> {
    each(value, &mut |table, program| {
        let found = victim::verify(program, data_root)?;
        if !found.is_empty() {
            table["digests"] = json!(found);
        }
        Ok(())
    })
}

/// The local files of every program among some parameters.
///
/// # Errors
/// As [`digest`].
pub fn files(params: &Value, data_root: Option<&Path>) -> Result<Vec<PathBuf>, FileFault> {
    let (mut params, mut files) = (params.clone(), Vec::new());
    each(&mut params, &mut |_, program| {
        files.extend(victim::resolve(program, data_root)?.into_iter().map(|(_, path)| path));
        Ok(())
    })?;
    files.sort();
    files.dedup();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_written_wherever_a_program_stands() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("mine.py"), "abc").unwrap();
        let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let own = || json!({"name": "program", "command": ["python3", "mine.py"]});
        let mut cell = json!({"model": own(), "defense": {"name": "stack", "of": [own(), {"name": "rotation"}]}});
        digest(&mut cell, Some(root.path())).unwrap();
        assert_eq!(cell["model"]["digests"], json!({"mine.py": sha256}));
        assert_eq!(cell["defense"]["of"][0]["digests"], json!({"mine.py": sha256}));
        assert_eq!(files(&cell, Some(root.path())).unwrap(), [root.path().join("mine.py")]);
        // As planned once, so planned again; and a file that has changed since is told.
        digest(&mut cell, Some(root.path())).unwrap();
        std::fs::write(root.path().join("mine.py"), "abcd").unwrap();
        assert!(digest(&mut cell, Some(root.path())).unwrap_err().to_string().contains("mine.py has changed"));
        // Nothing local: the address is the command's.
        let mut bare = json!({"name": "program", "command": ["mine"]});
        digest(&mut bare, None).unwrap();
        assert!(bare.get("digests").is_none());
    }
}
