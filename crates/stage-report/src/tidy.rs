//! The tidy rows as JSON and CSV.

use anyhow::{Context as _, Result};
use artifact::ReportRow;
use serde_json::{Map, Value, json};

const BEFORE: [&str; 4] = ["pipeline", "scale", "protocol", "quantity"];
const AFTER: [&str; 10] = [
    "value",
    "low",
    "high",
    "numerator",
    "denominator",
    "baseline_zero",
    "baseline_noise",
    "forward_queries",
    "backward_queries",
    "paper",
];

/// One object per row: who, the parameters by name, the numbers.
///
/// A parameter with the name of a fixed field is written as `parameter.<name>`.
fn objects(rows: &[ReportRow]) -> Result<Vec<Map<String, Value>>> {
    rows.iter().map(object).collect()
}

fn object(row: &ReportRow) -> Result<Map<String, Value>> {
    let parameters: Map<String, Value> = serde_json::from_str(&row.parameters).context("a row's parameters")?;
    let before = [&row.pipeline, &row.scale, &row.protocol, &row.quantity].map(|text| json!(text));
    let after = [
        json!(row.value),
        json!(row.low),
        json!(row.high),
        json!(row.numerator),
        json!(row.denominator),
        json!(row.baseline_zero),
        json!(row.baseline_noise),
        json!(row.forward_queries),
        json!(row.backward_queries),
        json!(row.paper),
    ];
    let mut object = Map::new();
    object.extend(BEFORE.map(str::to_owned).into_iter().zip(before));
    for (name, value) in parameters {
        let taken = BEFORE.contains(&name.as_str()) || AFTER.contains(&name.as_str());
        object.insert(if taken { format!("parameter.{name}") } else { name }, value);
    }
    object.extend(AFTER.map(str::to_owned).into_iter().zip(after));
    Ok(object)
}

/// A list of objects, one a line.
pub(crate) fn json(rows: &[ReportRow]) -> Result<String> {
    let lines: Vec<String> = objects(rows)?.into_iter().map(|object| Value::Object(object).to_string()).collect();
    Ok(format!("[\n{}\n]\n", lines.join(",\n")))
}

/// The same with a header; parameters that a row lacks are empty.
pub(crate) fn csv(rows: &[ReportRow]) -> Result<String> {
    let objects = objects(rows)?;
    let mut names: Vec<&str> = BEFORE.to_vec();
    for name in objects.iter().flat_map(Map::keys) {
        if !names.contains(&name.as_str()) && !AFTER.contains(&name.as_str()) {
            names.push(name);
        }
    }
    names.extend(AFTER);
    let mut text = names.iter().map(|name| quote(name)).collect::<Vec<_>>().join(",") + "\n";
    for object in &objects {
        let cell = |name: &&str| match object.get(*name) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => quote(text),
            Some(other) => quote(&other.to_string()),
        };
        text += &(names.iter().map(cell).collect::<Vec<_>>().join(",") + "\n");
    }
    Ok(text)
}

/// RFC 4180.
fn quote(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(parameters: &str) -> ReportRow {
        ReportRow {
            pipeline: "p".to_owned(),
            scale: "demo".to_owned(),
            protocol: "corrected".to_owned(),
            quantity: "attack_success_rate".to_owned(),
            parameters: parameters.to_owned(),
            value: Some(0.5),
            low: Some(0.25),
            high: None,
            numerator: Some(1),
            denominator: Some(2),
            baseline_zero: None,
            baseline_noise: Some(0.0),
            forward_queries: Some(50.0),
            backward_queries: Some(50.0),
            paper: None,
        }
    }

    #[test]
    fn json_has_parameters_by_name_and_never_hides_a_number() {
        let text = json(&[row(r#"{"eot":5,"value":"best","protocol":"mine"}"#)]).unwrap();
        let parsed: Vec<Map<String, Value>> = serde_json::from_str(&text).unwrap();
        let [object] = parsed.as_slice() else { panic!("one row") };
        assert_eq!(
            (&object["eot"], &object["value"], &object["parameter.value"]),
            (&json!(5), &json!(0.5), &json!("best"))
        );
        assert_eq!((&object["protocol"], &object["parameter.protocol"]), (&json!("corrected"), &json!("mine")));
        assert_eq!((&object["paper"], &object["denominator"]), (&Value::Null, &json!(2)));
    }

    #[test]
    fn csv_has_every_parameter_of_every_row_and_quotes_texts() {
        let text = csv(&[row(r#"{"a":"x,\"y\""}"#), row(r#"{"b":[1,2]}"#)]).unwrap();
        let numbers = "0.5,0.25,,1,2,,0.0,50.0,50.0,";
        let header = format!("pipeline,scale,protocol,quantity,a,b,{}", AFTER.join(","));
        let first = format!("p,demo,corrected,attack_success_rate,\"x,\"\"y\"\"\",,{numbers}");
        let second = format!("p,demo,corrected,attack_success_rate,,\"[1,2]\",{numbers}");
        assert_eq!(text, format!("{header}\n{first}\n{second}\n"));
    }
}
