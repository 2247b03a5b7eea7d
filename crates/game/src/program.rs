//! A program that somebody else wrote, as a player: how it is called, and what it is made of.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Gradient;

/// How a program is called that serves as a network or as a defense, and what decides its answers.
///
/// In parameters: `{"name": "program", "command": ["python3", "mine.py"]}`. What it answers is decided by its files, so their
/// digests are part of the parameters: the planner writes them there, and a stage refuses files that have others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// The program and its arguments. Relative paths are below the current folder or the data root.
    pub command: Vec<String>,
    /// Files that it reads beside those that its command names, as its weights: absolute, or below the same folders.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<String>,
    /// What the user calls this version of it: another text is another program, though no file has changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// How an attack differentiates it, where it is a defense: by asking it (`exact`, the default), or as the identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gradient: Option<Gradient>,
    /// SHA-256 in hexadecimal of its files, by the names they have above.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub digests: BTreeMap<String, String>,
}

impl Program {
    /// Whether the parameters make sense.
    ///
    /// # Errors
    /// One sentence: the parameter, its value, and what it must be.
    pub fn check(&self) -> Result<(), String> {
        if self.command.first().is_none_or(String::is_empty) {
            return Err("command = [] starts nothing: write the program and its arguments, each a text".to_owned());
        }
        let text = self.command.iter().chain(&self.files);
        if let Some(part) = text.into_iter().find(|part| part.contains('\0')) {
            return Err(format!("command: {part:?} holds a zero byte, which no argument can"));
        }
        let mut digests = self.digests.iter();
        match digests.find(|(_, digest)| digest.len() != 64 || !digest.bytes().all(|b| b.is_ascii_hexdigit())) {
            Some((name, digest)) => {
                Err(format!("digests: `{digest}` of {name} is no SHA-256; write 64 hexadecimal digits"))
            }
            None => Ok(()),
        }
    }

    /// Its command as one line, for messages.
    #[must_use]
    pub fn line(&self) -> String {
        self.command.join(" ")
    }

    /// A few letters for file names: the last of its command's words that names a file, else the first, without folders and
    /// extension.
    #[must_use]
    pub fn slug(&self) -> String {
        let is_file = |word: &&String| !word.starts_with('-') && word.contains(['/', '.']);
        let word = self.command.iter().rev().find(is_file).or(self.command.first()).map_or("", String::as_str);
        let stem = word.rsplit('/').next().unwrap_or_default().split('.').next().unwrap_or_default();
        let letters: String =
            stem.chars().filter(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)).take(24).collect();
        if letters.is_empty() { "program".to_owned() } else { format!("program-{letters}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(command: &[&str]) -> Program {
        Program { command: command.iter().map(|&word| word.to_owned()).collect(), ..Program::default() }
    }

    #[test]
    fn a_slug_names_the_script() {
        assert_eq!(program(&["python3", "mine/my_net.py"]).slug(), "program-my_net");
        assert_eq!(program(&["./noise", "--fast"]).slug(), "program-noise");
        assert_eq!(program(&["..."]).slug(), "program");
    }

    #[test]
    fn what_starts_nothing_is_refused() {
        assert!(program(&[]).check().unwrap_err().contains("starts nothing"));
        assert!(program(&["a\0"]).check().unwrap_err().contains("zero byte"));
        let digests = [("mine.py".to_owned(), "12".to_owned())].into();
        let wrong = Program { digests, ..program(&["python3", "mine.py"]) };
        assert!(wrong.check().unwrap_err().contains("`12` of mine.py is no SHA-256"));
        assert_eq!(program(&["python3", "mine.py"]).check(), Ok(()));
    }
}
