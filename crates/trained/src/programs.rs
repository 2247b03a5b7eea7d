//! Programs that a stage runs: the network's, and those among its defenses.

use std::sync::Arc;

use artifact::Provenance;
use game::Program;
use serde_json::{Value, json};
use stage::{Context, Invalid, Unfit, Usage};
use victim::{Client, Draws, Fault, Kind, Options, Transformation};

/// The running programs of a stage; they end with it.
#[derive(Clone, Debug, Default)]
pub struct Programs {
    clients: Vec<(&'static str, Arc<Client>)>,
}

impl Programs {
    /// Starts every program among the transformations of a defense, and puts them to their work.
    ///
    /// # Errors
    /// [`Unfit`] if one cannot be started, or is no transformation; [`Usage`] if the environment's limits are none.
    pub fn start(&mut self, defense: &defenses::Spec, ctx: &Context) -> anyhow::Result<()> {
        for program in defense.programs() {
            let client = self.open("defense", program.parameters(), ctx)?;
            program.start(Arc::new(Transformation::new(client).map_err(told)?));
        }
        Ok(())
    }

    /// Starts a program to play a part.
    ///
    /// # Errors
    /// As [`Programs::start`].
    pub fn open(&mut self, part: &'static str, program: &Program, ctx: &Context) -> anyhow::Result<Arc<Client>> {
        let options = Options::from_env(ctx.data_root.as_deref()).map_err(Usage)?;
        let client = Arc::new(Client::start(program, &options).map_err(told)?);
        let hello = client.hello();
        ctx.announce(&format!("{part}: program `{}`: {}", program.line(), hello.operations.join(", ")));
        if hello.draws == Draws::Batch {
            tracing::warn!("{part}: draws of a row depend on its whole batch: rows are other ones in other parts");
        }
        self.clients.push((part, client.clone()));
        Ok(client)
    }

    /// The most rows that all of them take at a time.
    #[must_use]
    pub fn batch(&self) -> usize {
        self.clients.iter().filter_map(|(_, client)| client.hello().batch).min().unwrap_or(usize::MAX)
    }

    /// Records what an artifact owes to them: their files among its inputs, and what they say of themselves.
    pub fn record(&self, provenance: &mut Provenance) {
        if self.clients.is_empty() {
            return;
        }
        provenance.facts.insert("programs".to_owned(), self.facts());
        provenance.inputs.extend(self.clients.iter().flat_map(|(_, client)| client.files().clone()));
    }

    fn facts(&self) -> Value {
        let fact = |(part, client): &(&str, Arc<Client>)| {
            let hello = client.hello();
            json!({
                "part": part, "command": client.program().command, "files": client.files(),
                "protocol": hello.protocol, "operations": hello.operations, "shape": hello.shape,
                "classes": hello.classes, "range": hello.range, "random": hello.random,
                "draws": match hello.draws { Draws::Row => "row", Draws::Batch => "batch" },
                "batch": hello.batch, "digests": hello.digests, "versions": hello.versions,
            })
        };
        self.clients.iter().map(fact).collect()
    }

    /// Gives an error that a program has caused its exit code; another one is left as it is.
    #[must_use]
    pub fn blame(&self, error: anyhow::Error) -> anyhow::Error {
        match self.clients.iter().find_map(|(_, client)| client.fault()) {
            Some(fault) if format!("{error:#}").contains(&fault.reason) => told(fault),
            _ => error,
        }
    }
}

/// A program's failure with its exit code.
fn told(fault: Fault) -> anyhow::Error {
    let text = fault.to_string();
    if fault.kind == Kind::Numbers { Invalid(text).into() } else { Unfit(text).into() }
}
