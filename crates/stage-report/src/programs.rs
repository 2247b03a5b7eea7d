//! What a reader must know of the programs that played a part in the rows.

use serde_json::Value;
use stage::Input;

/// A note for every program whose draws are not those of a row alone.
pub fn notes(inputs: &[Input]) -> Vec<String> {
    let programs = inputs.iter().filter_map(|input| input.provenance.facts.get("programs")?.as_array());
    let mut notes: Vec<String> = programs.flatten().filter(|program| program["draws"] == "batch").map(note).collect();
    notes.sort();
    notes.dedup();
    notes
}

fn note(program: &Value) -> String {
    let words = program["command"].as_array().map(Vec::as_slice).unwrap_or_default();
    let line = words.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" ");
    format!(
        "Draws of the program `{line}` depend on the whole batch: in other batches or parts its rows are other ones."
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_draws_that_depend_on_the_batch_are_noted() {
        let input = |draws: &str| {
            let facts = json!({"programs": [{"command": ["python3", "mine.py"], "draws": draws}]});
            let provenance = json!({
                "kind": "attack", "stage": "attack", "revision": 1, "parameters": {}, "inputs": {}, "facts": facts,
                "shard": {"index": 0, "count": 1}, "environment": {},
            });
            let provenance = serde_json::from_value(provenance).unwrap();
            Input { path: "part.parquet".into(), provenance, sha256: String::new() }
        };
        assert!(notes(&[input("row")]).is_empty());
        let found = notes(&[input("batch"), input("batch")]);
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("`python3 mine.py`"), "{found:?}");
    }
}
