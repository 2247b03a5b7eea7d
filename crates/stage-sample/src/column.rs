//! Values of a column whatever wrote it: `datasets`, pandas, polars and DuckDB choose other types for the same thing.

use arrow_array::{
    Array,
    cast::AsArray,
    types::{
        Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type,
        UInt64Type,
    },
};
use arrow_schema::DataType;

/// Whether a column holds bytes.
pub(crate) fn is_bytes(kind: &DataType) -> bool {
    match kind {
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => true,
        DataType::Dictionary(_, values) => is_bytes(values),
        _ => false,
    }
}

/// Whether a column holds text.
pub(crate) fn is_text(kind: &DataType) -> bool {
    match kind {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, values) => is_text(values),
        _ => false,
    }
}

/// Whether a column holds numbers that may be whole.
pub(crate) fn is_number(kind: &DataType) -> bool {
    match kind {
        DataType::Float32 | DataType::Float64 | DataType::Boolean => true,
        DataType::Dictionary(_, values) => is_number(values),
        _ => kind.is_integer(),
    }
}

/// The bytes of a row; none where they are null, or no bytes.
pub(crate) fn bytes(column: &dyn Array, row: usize) -> Option<&[u8]> {
    if column.is_null(row) {
        return None;
    }
    Some(match column.data_type() {
        DataType::Binary => column.as_binary::<i32>().value(row),
        DataType::LargeBinary => column.as_binary::<i64>().value(row),
        DataType::BinaryView => column.as_binary_view().value(row),
        DataType::FixedSizeBinary(_) => column.as_fixed_size_binary().value(row),
        DataType::Dictionary(..) => return in_dictionary(column, row).and_then(|(values, key)| bytes(values, key)),
        _ => return None,
    })
}

/// The text of a row; none where it is null, or no text.
pub(crate) fn text(column: &dyn Array, row: usize) -> Option<&str> {
    if column.is_null(row) {
        return None;
    }
    Some(match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().value(row),
        DataType::LargeUtf8 => column.as_string::<i64>().value(row),
        DataType::Utf8View => column.as_string_view().value(row),
        DataType::Dictionary(..) => return in_dictionary(column, row).and_then(|(values, key)| text(values, key)),
        _ => return None,
    })
}

/// The whole number of a row; none where it is null.
///
/// # Errors
/// With the value, where it is no whole number that 64 bits hold.
pub(crate) fn number(column: &dyn Array, row: usize) -> Result<Option<i64>, String> {
    if column.is_null(row) {
        return Ok(None);
    }
    macro_rules! value {
        ($kind:ty) => {
            column.as_primitive::<$kind>().value(row)
        };
    }
    Ok(Some(match column.data_type() {
        DataType::Int8 => value!(Int8Type).into(),
        DataType::Int16 => value!(Int16Type).into(),
        DataType::Int32 => value!(Int32Type).into(),
        DataType::Int64 => value!(Int64Type),
        DataType::UInt8 => value!(UInt8Type).into(),
        DataType::UInt16 => value!(UInt16Type).into(),
        DataType::UInt32 => value!(UInt32Type).into(),
        DataType::UInt64 => value!(UInt64Type).try_into().map_err(|_| value!(UInt64Type).to_string())?,
        DataType::Float32 => return whole(value!(Float32Type).into()),
        DataType::Float64 => return whole(value!(Float64Type)),
        DataType::Boolean => column.as_boolean().value(row).into(),
        DataType::Dictionary(..) => {
            return in_dictionary(column, row).map_or(Ok(None), |(values, key)| number(values, key));
        }
        kind => return Err(kind.to_string()),
    }))
}

/// pandas makes floats of integers where one is missing, and NaN of that one.
fn whole(value: f64) -> Result<Option<i64>, String> {
    match value {
        value if value.is_nan() => Ok(None),
        value if value.fract() == 0.0 && value.abs() < 9e15 => Ok(Some(value as i64)),
        value => Err(value.to_string()),
    }
}

fn in_dictionary(column: &dyn Array, row: usize) -> Option<(&dyn Array, usize)> {
    let dictionary = column.as_any_dictionary_opt()?;
    Some((dictionary.values().as_ref(), *dictionary.normalized_keys().get(row)?))
}
