//! A network that keeps some of its classes: the last layer without the rows of the others.

use candle_core::{Device, Tensor};
use nets::{Graph, Op, Spec, Weights};
use serde_json::json;

/// The architecture with so many classes.
///
/// # Errors
/// If it cannot have so many.
pub(crate) fn with_classes(model: &Spec, classes: usize) -> Result<Graph, String> {
    let mut spec = json!(model);
    spec["classes"] = json!(classes);
    let spec: Spec = serde_json::from_value(spec).map_err(|fault| fault.to_string())?;
    spec.graph().map_err(|fault| fault.to_string())
}

/// The weights of a graph whose last layer has these rows alone, in this order.
///
/// # Errors
/// If there is no last layer that is linear.
pub(crate) fn keep(graph: &Graph, mut weights: Weights, rows: &[u32]) -> candle_core::Result<Weights> {
    let linear = |node: &nets::Node| match &node.op {
        Op::Linear { name, .. } => Some(name.clone()),
        _ => None,
    };
    let Some(head) = graph.nodes.iter().rev().find_map(linear) else {
        candle_core::bail!("the network's last layer is not linear: it cannot keep some of its classes")
    };
    let rows = Tensor::new(rows, &Device::Cpu)?;
    for name in ["weight", "bias"] {
        if let Some(tensor) = weights.get_mut(&format!("{head}.{name}")) {
            *tensor = tensor.index_select(&rows, 0)?;
        }
    }
    Ok(weights)
}

#[cfg(test)]
mod tests {
    use game::Key;

    use super::*;

    #[test]
    fn the_last_layer_keeps_the_rows_asked_for() {
        let spec: Spec =
            serde_json::from_value(json!({"name": "cifar-resnet", "depth": 8, "width": 4, "classes": 2})).unwrap();
        let graph = with_classes(&spec, 7).unwrap();
        let all = nets::weights::initialise(&graph, Key::root(3)).unwrap();
        let kept = keep(&graph, all.clone(), &[5, 1]).unwrap();
        let rows = |weights: &Weights| weights["linear.weight"].to_vec2::<f32>().unwrap();
        assert_eq!(rows(&kept), [rows(&all)[5].clone(), rows(&all)[1].clone()]);
        assert_eq!(kept["linear.bias"].dims(), [2]);
        assert_eq!(kept["conv1.weight"].to_vec1::<f32>().ok(), all["conv1.weight"].to_vec1::<f32>().ok());
        nets::weights::prepare(&spec.graph().unwrap(), kept, std::path::Path::new("kept")).unwrap();
    }
}
