//! What may stand as a network in parameters: an architecture of ours, one of candle's library, or a program.

use nets::{Inside, Precision};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _, ser::Error as _};
use serde_json::{Value, json};

/// A network by its parameters; `name` tells which kind it is.
#[derive(Clone, Debug, PartialEq)]
pub enum Model {
    /// An architecture of ours, which is given weights.
    Graph(nets::Spec),
    /// An architecture of candle's library, which is given weights and never trained:
    /// `{"name": "candle", "architecture": "vit-base-patch16-224"}`.
    Candle(zoo::Spec),
    /// A program, which brings its own: `{"name": "program", "command": ["python3", "mine.py"]}`.
    Program(game::Program),
}

/// The `name` of a program.
const PROGRAM: &str = "program";
/// The `name` of every network of candle's library.
const CANDLE: &str = "candle";

impl Model {
    /// Whether the parameters make sense.
    ///
    /// # Errors
    /// One sentence: the parameter, its value, and what it must be.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Self::Graph(spec) => spec.graph().map(drop).map_err(|fault| fault.to_string()),
            Self::Candle(spec) => spec.check().map_err(|fault| fault.to_string()),
            Self::Program(program) if program.gradient.is_some() => {
                Err("gradient: a network is differentiated by asking it; only a defense may say `identity`".to_owned())
            }
            Self::Program(program) => program.check(),
        }
    }

    /// The architecture, where it is one of ours.
    #[must_use]
    pub const fn graph(&self) -> Option<&nets::Spec> {
        match self {
            Self::Graph(spec) => Some(spec),
            Self::Candle(_) | Self::Program(_) => None,
        }
    }

    /// The network of candle's library, where it is one.
    #[must_use]
    pub const fn candle(&self) -> Option<&zoo::Spec> {
        match self {
            Self::Candle(spec) => Some(spec),
            Self::Graph(_) | Self::Program(_) => None,
        }
    }

    /// The program, where it is one.
    #[must_use]
    pub const fn program(&self) -> Option<&game::Program> {
        match self {
            Self::Graph(_) | Self::Candle(_) => None,
            Self::Program(program) => Some(program),
        }
    }

    /// The number of classes, where the parameters tell: a program says it when it is started.
    #[must_use]
    pub const fn classes(&self) -> Option<usize> {
        match self {
            Self::Graph(spec) => Some(spec.classes()),
            Self::Candle(spec) => Some(spec.classes),
            Self::Program(_) => None,
        }
    }

    /// Whether the network can have something put inside it, and multiply in `precision`.
    ///
    /// # Errors
    /// One sentence: the parameter, and the mend.
    pub fn takes(&self, inside: Option<&Inside>, precision: Precision) -> Result<(), String> {
        let (into, computes) = match self {
            Self::Graph(_) => return Ok(()),
            Self::Candle(_) => ("a network of candle's library", "a network of candle's library computes in f32"),
            Self::Program(_) => ("a program", "a program computes as it will"),
        };
        if inside.is_some() {
            return Err(format!("inside: nothing can be put into {into}; leave it out"));
        }
        if precision.is_full() { Ok(()) } else { Err(format!("precision: {computes}; leave it out")) }
    }

    /// A few letters for file names; for eyes only.
    #[must_use]
    pub fn slug(&self) -> String {
        match self {
            Self::Graph(spec) => {
                let table = json!(spec);
                let depth = table["depth"].as_u64().map(|depth| format!("-{depth}")).unwrap_or_default();
                format!("{}{depth}", table["name"].as_str().unwrap_or_default())
            }
            Self::Candle(spec) => spec.architecture.clone(),
            Self::Program(program) => program.slug(),
        }
    }
}

/// A table with the `name` of its kind before its fields.
fn named<S: Serializer>(name: &str, table: &impl Serialize, serializer: S) -> Result<S::Ok, S::Error> {
    let Value::Object(fields) = serde_json::to_value(table).map_err(S::Error::custom)? else {
        return Err(S::Error::custom("parameters are a table"));
    };
    let name = ("name".to_owned(), Value::from(name));
    Value::Object(std::iter::once(name).chain(fields).collect()).serialize(serializer)
}

impl Serialize for Model {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Graph(spec) => spec.serialize(serializer),
            Self::Candle(spec) => named(CANDLE, spec, serializer),
            Self::Program(program) => named(PROGRAM, program, serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Model {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = Value::deserialize(deserializer)?;
        let name = value.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        if name == PROGRAM || name == CANDLE {
            value.as_object_mut().map(|fields| fields.shift_remove("name"));
            return match name == PROGRAM {
                true => serde_json::from_value(value).map(Self::Program),
                false => serde_json::from_value(value).map(Self::Candle),
            }
            .map_err(D::Error::custom);
        }
        if !name.is_empty() && !nets::Spec::NAMES.contains(&name.as_str()) {
            let known = nets::Spec::NAMES.map(|name| format!("`{name}`")).join(", ");
            let text = format!("unknown variant `{name}`, expected one of {known}, `{CANDLE}`, `{PROGRAM}`");
            return Err(D::Error::custom(text));
        }
        serde_json::from_value(value).map(Self::Graph).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_written_as_they_are_read() {
        for text in [
            r#"{"name":"program","command":["python3","mine.py"]}"#,
            r#"{"name":"program","command":["./mine"],"files":["mine.pt"],"version":"2"}"#,
        ] {
            let model: Model = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&model).unwrap(), text);
            assert!(model.check().is_ok() && model.classes().is_none());
        }
        let ours: Model = serde_json::from_str(r#"{"name": "cifar-resnet", "depth": 20}"#).unwrap();
        let spec: nets::Spec = serde_json::from_str(r#"{"name": "cifar-resnet", "depth": 20}"#).unwrap();
        // As before there were programs: no address moves.
        assert_eq!(serde_json::to_string(&ours).unwrap(), serde_json::to_string(&spec).unwrap());
        assert_eq!((ours.slug().as_str(), ours.classes()), ("cifar-resnet-20", Some(10)));
    }

    #[test]
    fn networks_of_candles_library_are_named_by_their_architecture() {
        let text = r#"{"name": "candle", "architecture": "deit-tiny-patch16-224", "classes": 10}"#;
        let model: Model = serde_json::from_str(text).unwrap();
        let whole = serde_json::to_value(&model).unwrap();
        assert_eq!((&whole["name"], &whole["side"]), (&json!("candle"), &json!(224)));
        assert_eq!(serde_json::from_value::<Model>(whole).unwrap(), model);
        assert_eq!((model.slug().as_str(), model.classes()), ("deit-tiny-patch16-224", Some(10)));
        assert!(model.check().is_ok() && model.graph().is_none() && model.program().is_none());
    }

    #[test]
    fn what_is_no_network_is_told() {
        let fault = |text: &str| serde_json::from_str::<Model>(text).unwrap_err().to_string();
        assert!(fault(r#"{"name": "resnext"}"#).contains("`program`"));
        assert!(fault(r#"{"name": "program"}"#).contains("command"));
        assert!(fault(r#"{"name": "candle"}"#).contains("architecture"));
        assert!(fault(r#"{"name": "candle", "architecture": "vit-base"}"#).contains("vit-base-patch16-224"));
        assert!(fault(r#"{"name": "program", "comand": []}"#).contains("comand"));
        let model: Model =
            serde_json::from_str(r#"{"name": "program", "command": ["x"], "gradient": "identity"}"#).unwrap();
        assert!(model.check().unwrap_err().contains("only a defense"));
    }
}
