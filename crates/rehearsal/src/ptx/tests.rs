//! Tests of the interpreter.

use super::*;

#[test]
#[ignore]
fn scan() {
    let mut bad = std::collections::BTreeMap::new();
    let (mut good, mut all) = (0, 0);
    for path in std::env::var("PTX").unwrap().split(':') {
        let text = std::fs::read_to_string(path).unwrap();
        if text.is_empty() {
            continue;
        }
        let module = Module::load(&text).unwrap();
        for name in module.kernels.keys() {
            all += 1;
            match module.kernel(name) {
                Ok(_) => good += 1,
                Err(e) => {
                    bad.entry(e.message.split("`: ").nth(1).unwrap_or(&e.message).to_owned())
                        .or_insert((0, e.message.clone()))
                        .0 += 1;
                }
            }
        }
    }
    for (k, v) in bad {
        println!("{k} {v:?}");
    }
    println!("{good} of {all}");
}
