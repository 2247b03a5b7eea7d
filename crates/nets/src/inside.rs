//! Randomness inside a trained network.

use serde::{Deserialize, Serialize};

use crate::{Graph, Id, Node, Op};

/// What makes a trained network stochastic: `{"name": "activation-pruning"}`.
///
/// It is put there after training and adds no parameter, so the weights stay those of the network without it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Inside {
    /// Stochastic activation pruning (Dhillon et al. 2018), as Athalye et al. 2018 re-implemented it: after every
    /// convolution, and so before the next normalisation and activation. See [`Op::Prune`].
    ActivationPruning {
        /// Draws with replacement that the pruning stands for, per value of a layer's output; greater than 0.
        #[serde(default = "two")]
        samples: f64,
    },
}

const fn two() -> f64 {
    2.0
}

impl Inside {
    /// The accepted values of `name`.
    pub const NAMES: [&'static str; 1] = ["activation-pruning"];

    /// One of each, for tests and documentation.
    #[must_use]
    pub fn examples() -> Vec<Self> {
        vec![Self::ActivationPruning { samples: two() }]
    }

    /// Whether the parameters make sense.
    ///
    /// # Errors
    /// One sentence: the parameter, its value, and what it must be.
    pub fn check(&self) -> Result<(), String> {
        match *self {
            Self::ActivationPruning { samples } if samples.is_finite() && samples > 0.0 => Ok(()),
            Self::ActivationPruning { samples } => {
                Err(format!("activation-pruning: `samples` is {samples}: it must be above 0 (the original's is 2)"))
            }
        }
    }

    /// The graph with the randomness in it; its parameters are those of `graph`.
    #[must_use]
    pub fn apply(&self, graph: &Graph) -> Graph {
        match *self {
            Self::ActivationPruning { samples } => prune(graph, samples),
        }
    }

    /// A few letters for file names; for eyes only.
    #[must_use]
    pub fn slug(&self) -> String {
        match *self {
            Self::ActivationPruning { samples } if samples == two() => "activation-pruning".to_owned(),
            Self::ActivationPruning { samples } => format!("activation-pruning-{samples}"),
        }
    }
}

/// Puts a pruning between every convolution and what reads it.
fn prune(graph: &Graph, samples: f64) -> Graph {
    let mut pruned = Graph { nodes: Vec::with_capacity(2 * graph.nodes.len()), classes: graph.classes };
    // Where the output of each old node is now.
    let mut place: Vec<Id> = Vec::with_capacity(graph.nodes.len());
    let mut index = 0;
    for node in &graph.nodes {
        let inputs = node.inputs.iter().map(|&input| place[input]).collect();
        pruned.nodes.push(Node { op: node.op.clone(), inputs });
        if let Op::Conv(_) = node.op {
            let conv = pruned.nodes.len() - 1;
            pruned.nodes.push(Node { op: Op::Prune { samples, index }, inputs: vec![conv] });
            index += 1;
        }
        place.push(pruned.nodes.len() - 1);
    }
    pruned
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Spec;

    #[test]
    fn every_convolution_is_pruned_before_it_is_read() {
        for graph in Spec::examples().iter().map(|spec| spec.graph().unwrap()) {
            let stochastic = Inside::ActivationPruning { samples: 3.0 }.apply(&graph);
            assert!(stochastic.is_stochastic() && !graph.is_stochastic());
            assert_eq!(stochastic.parameters(), graph.parameters());
            let convolutions = graph.nodes.iter().filter(|node| matches!(node.op, Op::Conv(_))).count();
            assert_eq!(stochastic.nodes.len(), graph.nodes.len() + convolutions);
            let mut next = 0;
            for (id, node) in stochastic.nodes.iter().enumerate() {
                assert!(node.inputs.iter().all(|&input| input < id));
                let before = |input: &Id| matches!(stochastic.nodes[*input].op, Op::Conv(_));
                if let Op::Prune { samples, index } = node.op {
                    assert!(samples == 3.0 && index == next && node.inputs.iter().all(before));
                    next += 1;
                } else {
                    assert!(!node.inputs.iter().any(before), "node {id} reads a convolution past its pruning");
                }
            }
            assert_eq!(next as usize, convolutions);
        }
    }

    #[test]
    fn parameters_are_checked_and_survive_json() {
        let names: Vec<_> = Inside::examples()
            .into_iter()
            .map(|inside| {
                let json = serde_json::to_value(&inside).unwrap();
                assert_eq!(serde_json::from_value::<Inside>(json.clone()).unwrap(), inside);
                inside.check().unwrap();
                json["name"].as_str().unwrap().to_owned()
            })
            .collect();
        assert_eq!(names, Inside::NAMES);
        let pruning = |samples| Inside::ActivationPruning { samples };
        let parse = serde_json::from_str::<Inside>;
        assert_eq!(parse(r#"{"name": "activation-pruning"}"#).unwrap(), pruning(2.0));
        assert!(parse(r#"{"name": "activation-pruning", "sample": 2}"#).unwrap_err().to_string().contains("sample"));
        for samples in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(pruning(samples).check().unwrap_err().contains("samples"));
        }
        assert_eq!(
            (pruning(2.0).slug(), pruning(0.5).slug()),
            ("activation-pruning".into(), "activation-pruning-0.5".into())
        );
    }
}
