//! What a program says of itself first.

use std::collections::BTreeMap;

use crate::Message;

/// The protocol that this crate speaks. The first number changes when an old program would be misunderstood, the second when
/// something is added that an old program need not know.
pub const VERSION: &str = "1.0";

/// On what the random numbers of a row depend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draws {
    /// On its key alone.
    Row,
    /// On the keys of its whole batch: rows are then other ones in other batches, and in other parts.
    Batch,
}

/// What a program says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Hello {
    /// The protocol's version that it speaks.
    pub protocol: String,
    /// What it understands beyond the operations, as `shared`.
    pub features: Vec<String>,
    /// The operations it answers: `logits`, `apply`, `pull`.
    pub operations: Vec<String>,
    /// Channels, rows and columns of its images; any where it does not say.
    pub shape: Option<[usize; 3]>,
    /// The number of classes, of a program that answers `logits`.
    pub classes: Option<usize>,
    /// The values that its pixels range over. Images here are in `[0, 1]`, and are brought to its range and back.
    pub range: [f64; 2],
    /// Whether other keys give other answers.
    pub random: bool,
    /// On what its draws depend.
    pub draws: Draws,
    /// The most rows that it takes in one request; any number where it does not say.
    pub batch: Option<usize>,
    /// SHA-256 of what it says that it is made of, by name: source, weights.
    pub digests: BTreeMap<String, String>,
    /// Versions of what it runs on, by name.
    pub versions: BTreeMap<String, String>,
}

impl Hello {
    /// Whether it answers an operation.
    #[must_use]
    pub fn answers(&self, operation: &str) -> bool {
        self.operations.iter().any(|known| known == operation)
    }

    /// From the reply to `hello`.
    ///
    /// # Errors
    /// With a sentence about what is missing or cannot be.
    pub(crate) fn read(reply: &Message) -> Result<Self, String> {
        let text = |name: &str| reply.facts.get(name).map(String::as_str);
        let wanted = |name: &str| text(name).ok_or_else(|| format!("its hello lacks `{name}`"));
        let wrong = |name: &str| {
            let given = text(name).unwrap_or_default();
            format!("its hello says `{name}` = `{given:.80}`, which is none")
        };
        let protocol = wanted("protocol")?.to_owned();
        let major = |version: &str| version.split('.').next().and_then(|number| number.parse::<u32>().ok());
        if major(&protocol) != major(VERSION) {
            return Err(format!("it speaks the protocol `victim` {protocol:.20}, and this program {VERSION}"));
        }
        let list = |name: &str| -> Vec<String> {
            let words = text(name).unwrap_or_default().split(',').map(str::trim);
            words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
        };
        let number = |name: &str| -> Result<Option<usize>, String> {
            let number = |text: &str| text.parse().ok().filter(|&number: &usize| number > 0).ok_or_else(|| wrong(name));
            text(name).filter(|text| !text.is_empty()).map(number).transpose()
        };
        let flag = |name: &str| match wanted(name)? {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(wrong(name)),
        };
        let table = |name: &str| -> Result<BTreeMap<String, String>, String> {
            text(name).map_or(Ok(BTreeMap::new()), |text| serde_json::from_str(text).map_err(|_| wrong(name)))
        };
        let sides: Option<Vec<usize>> =
            list("shape").iter().map(|side| side.parse().ok().filter(|&side| side > 0)).collect();
        let shape =
            match (text("shape").unwrap_or_default(), sides.and_then(|sides| <[usize; 3]>::try_from(sides).ok())) {
                ("", _) => None,
                (_, Some(shape)) => Some(shape),
                _ => return Err(wrong("shape")),
            };
        let range = match text("range") {
            None => [0.0, 1.0],
            Some(_) => {
                let ends: Vec<f64> = list("range").iter().filter_map(|end| end.parse().ok()).collect();
                let ends = <[f64; 2]>::try_from(ends).map_err(|_| wrong("range"))?;
                let good = ends[0] < ends[1] && ends.iter().all(|end| end.is_finite());
                if good { ends } else { return Err(wrong("range")) }
            }
        };
        let draws = match text("draws") {
            None | Some("row") => Draws::Row,
            Some("batch") => Draws::Batch,
            Some(_) => return Err(wrong("draws")),
        };
        let hello = Self {
            protocol,
            features: list("features"),
            operations: list("operations"),
            shape,
            classes: number("classes")?,
            range,
            random: flag("random")?,
            draws,
            batch: number("batch")?,
            digests: table("digests")?,
            versions: table("versions")?,
        };
        match (hello.answers("logits"), hello.answers("apply"), hello.classes) {
            (false, false, _) => Err("its hello names neither `logits` nor `apply` among its `operations`".to_owned()),
            (true, _, None) => Err("its hello lacks `classes`".to_owned()),
            (true, _, Some(1)) => Err("its hello says `classes` = `1`: one class cannot be mistaken".to_owned()),
            _ => Ok(hello),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(changes: &[(&str, &str)]) -> Result<Hello, String> {
        let mut reply = Message::new("hello", 0)
            .with("protocol", "1.3")
            .with("operations", "logits, pull,later")
            .with("shape", "3,32,16")
            .with("classes", "10")
            .with("random", "true")
            .with("digests", r#"{"mine.py": "aa"}"#)
            .with("something", "new");
        for (name, text) in changes {
            reply.facts.insert((*name).to_owned(), (*text).to_owned());
        }
        Hello::read(&reply)
    }

    #[test]
    fn what_is_new_is_ignored_and_what_is_left_out_has_its_default() {
        let hello = hello(&[]).unwrap();
        assert_eq!((hello.shape, hello.classes, hello.range), (Some([3, 32, 16]), Some(10), [0.0, 1.0]));
        assert!(hello.random && hello.answers("pull") && !hello.answers("apply"));
        assert_eq!((hello.draws, hello.batch, hello.digests["mine.py"].as_str()), (Draws::Row, None, "aa"));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (name, text, part) in [
            ("protocol", "2.0", "speaks the protocol `victim` 2.0"),
            ("operations", "pull", "neither `logits` nor `apply`"),
            ("shape", "3,32", "`shape`"),
            ("shape", "3,0,32", "`shape`"),
            ("classes", "", "lacks `classes`"),
            ("classes", "ten", "`classes` = `ten`"),
            ("range", "1,0", "`range`"),
            ("range", "0,inf", "`range`"),
            ("random", "maybe", "`random`"),
            ("draws", "none", "`draws`"),
            ("digests", "[]", "`digests`"),
        ] {
            let fault = hello(&[(name, text)]).unwrap_err();
            assert!(fault.contains(part), "{name}={text}: {fault}");
        }
    }
}
