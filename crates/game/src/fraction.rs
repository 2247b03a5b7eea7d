//! Numbers written the way the field writes them: `8/255`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A number and how it was written: `"8/255"`, `"0.05"` or a plain TOML or JSON number.
///
/// The text is what is hashed, stored and printed; the value is what is computed with.
#[derive(Clone, Debug, PartialEq)]
pub struct Fraction {
    text: String,
    value: f64,
}

impl Fraction {
    /// The number.
    #[must_use]
    pub const fn value(&self) -> f64 {
        self.value
    }

    /// The number as it was written.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Fraction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Fraction {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |part: &str| part.trim().parse::<f64>().ok();
        let value = match text.split_once('/') {
            Some((over, under)) => number(over).zip(number(under)).map(|(over, under)| over / under),
            None => number(text),
        };
        match value {
            Some(value) if value.is_finite() => Ok(Self { text: text.trim().to_owned(), value }),
            _ => Err(format!("`{text}` is not a number; write it as 8/255, 0.05 or 3")),
        }
    }
}

impl From<f64> for Fraction {
    /// # Panics
    /// If the number is not finite.
    fn from(value: f64) -> Self {
        assert!(value.is_finite(), "a parameter must be finite, not {value}");
        Self { text: value.to_string(), value }
    }
}

impl Serialize for Fraction {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Fraction {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Fraction;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, or a text such as \"8/255\"")
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Fraction, E> {
                if value.is_finite() { Ok(value.into()) } else { Err(E::custom(format!("{value} is not finite"))) }
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Fraction, E> {
                Ok((value as f64).into())
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Fraction, E> {
                Ok((value as f64).into())
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Fraction, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

/// Reads a plain number that may be written as a fraction; for serde's `deserialize_with`.
///
/// # Errors
/// If it is no finite number.
pub fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Fraction::deserialize(deserializer).map(|number| number.value())
}

/// Reads three plain numbers that may be written as fractions; for serde's `deserialize_with`.
///
/// # Errors
/// If they are not three finite numbers.
pub fn triple<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[f64; 3], D::Error> {
    <[Fraction; 3]>::deserialize(deserializer).map(|numbers| numbers.map(|number| number.value()))
}

/// Whether a length in units of pixels is at most `most`, written as `text`; pixels are in `[0, 1]`, so that a length of
/// more than 1 per pixel is one of pixels in 0 to 255.
///
/// # Errors
/// One sentence: the parameter, its value, what it must be, and how to write a length of 255.
pub fn within_pixels(name: &str, value: f64, text: &dyn fmt::Display, most: f64) -> Result<(), String> {
    if value <= most {
        return Ok(());
    }
    let least = if most.fract() == 0.0 { most.to_string() } else { format!("{most:.1}") };
    let mend = if value <= 255.0 { format!("; for {text} of 255 write \"{text}/255\"") } else { String::new() };
    let mend = if text.to_string().contains('/') { String::new() } else { mend };
    Err(format!("{name} = {text} must be at most {least}: pixels are in [0, 1], and nothing is further apart{mend}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_keep_their_text() {
        let eps: Fraction = "8/255".parse().unwrap();
        assert_eq!((eps.value(), eps.text()), (8.0 / 255.0, "8/255"));
        assert_eq!(Fraction::from(0.25).text(), "0.25");
    }

    #[test]
    fn lengths_of_255_are_refused_with_the_mend() {
        for (value, most) in [(1.0, 1.0), (0.0, 1.0), (55.4, 3072f64.sqrt())] {
            within_pixels("eps", value, &value, most).unwrap();
        }
        let says = within_pixels("eps", 8.0, &8, 1.0).unwrap_err();
        assert!(says.contains("eps = 8") && says.contains("at most 1:") && says.contains("\"8/255\""), "{says}");
        let says = within_pixels("eps", 100.0, &100, 3072f64.sqrt()).unwrap_err();
        assert!(says.contains("at most 55.4"), "{says}");
        let says = within_pixels("eps", 400.0 / 255.0, &"400/255", 1.0).unwrap_err();
        assert!(!says.contains("write"), "{says}");
        assert!(within_pixels("eps", f64::NAN, &"NaN", 1.0).is_err());
    }

    #[test]
    fn plain_numbers_may_be_written_as_fractions() {
        #[derive(Deserialize)]
        struct Both {
            #[serde(deserialize_with = "number")]
            sigma: f64,
            #[serde(deserialize_with = "triple")]
            mean: [f64; 3],
        }
        let both: Both = serde_json::from_str(r#"{"sigma": "25/255", "mean": ["127/255", 0.5, 1]}"#).unwrap();
        assert_eq!((both.sigma, both.mean), (25.0 / 255.0, [127.0 / 255.0, 0.5, 1.0]));
        for wrong in [r#"{"sigma": null, "mean": [0, 0, 0]}"#, r#"{"sigma": 1, "mean": [0, 0]}"#] {
            assert!(serde_json::from_str::<Both>(wrong).is_err());
        }
    }

    #[test]
    fn nonsense_is_refused_with_an_example() {
        for text in ["8/0", "eight", "", "8/255/2", "inf"] {
            assert!(text.parse::<Fraction>().unwrap_err().contains("8/255"), "{text}");
        }
    }
}
