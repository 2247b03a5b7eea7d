//! A program as a transformation: its parameters here, its process wherever it is started.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use candle_core::{Result, Tensor, bail};
use game::{Defense, Entry, Gradient, Key};
use serde::{Deserialize, Serialize};

/// A transformation that a program computes.
///
/// Nothing here knows a process: whoever has the parameters starts the program, and puts what talks to it in its place
/// ([`Program::start`]). Copies of these parameters share it.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Program {
    parameters: game::Program,
    #[serde(skip)]
    running: Arc<OnceLock<Arc<dyn Defense>>>,
}

impl Program {
    /// How the program is called.
    #[must_use]
    pub const fn parameters(&self) -> &game::Program {
        &self.parameters
    }

    /// Lets `running` do what these parameters describe; the first one stays.
    pub fn start(&self, running: Arc<dyn Defense>) {
        let _ = self.running.set(running);
    }

    fn running(&self) -> Result<&dyn Defense> {
        match self.running.get() {
            Some(running) => Ok(running.as_ref()),
            None => bail!("{self:?} has not been started"),
        }
    }
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "program `{}`", self.parameters.line())
    }
}

impl PartialEq for Program {
    fn eq(&self, other: &Self) -> bool {
        self.parameters == other.parameters
    }
}

impl From<game::Program> for Program {
    fn from(parameters: game::Program) -> Self {
        Self { parameters, running: Arc::default() }
    }
}

impl Entry for Program {
    const ABOUT: &'static str = "a program of your own, in any language";

    fn check(&self) -> std::result::Result<(), String> {
        self.parameters.check()
    }

    /// None: what a program does is tested where one runs.
    fn examples() -> Vec<Self> {
        Vec::new()
    }

    fn slug(&self, _: &str) -> String {
        self.parameters.slug()
    }
}

impl Defense for Program {
    fn apply(&self, x: &Tensor, keys: &[Key]) -> Result<Tensor> {
        self.running()?.apply(x, keys)
    }

    fn gradient(&self) -> Gradient {
        self.parameters.gradient.unwrap_or_default()
    }

    fn exact_pullback(&self, x: &Tensor, keys: &[Key], upstream: &Tensor) -> Result<Tensor> {
        self.running()?.exact_pullback(x, keys, upstream)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::{Identity, Spec};

    #[test]
    fn parameters_are_the_programs_own_and_copies_share_what_runs() {
        let text = r#"{"name":"program","command":["python3","mine.py"],"gradient":"identity"}"#;
        let spec: Spec = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&spec).unwrap(), text);
        assert_eq!((spec.slug().as_str(), spec.build().gradient()), ("program-mine", Gradient::Identity));
        let wrong = serde_json::from_str::<Spec>(r#"{"name": "program", "command": [], "sigma": 1}"#).unwrap_err();
        assert!(wrong.to_string().contains("sigma"), "{wrong}");

        let x = Tensor::zeros((1, 3, 2, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
        let error = spec.build().apply(&x, &[Key::root(0)]).unwrap_err().to_string();
        assert!(error.contains("`python3 mine.py` has not been started"), "{error}");
        let stack: Spec = serde_json::from_str(&format!(r#"{{"name": "stack", "of": [{text}, {text}]}}"#)).unwrap();
        let copy = stack.clone();
        assert_eq!(stack.programs().len(), 2);
        stack.programs().iter().for_each(|program| program.start(Arc::new(Identity {})));
        assert!(copy.build().apply(&x, &[Key::root(0)]).is_ok());
        assert_eq!(copy, stack);
    }
}
