//! Rust types as Arrow columns, and the macro that makes a struct of them a table.

use std::sync::Arc;

use arrow_array::{
    Array, ArrayRef, ArrowPrimitiveType, BinaryArray, BooleanArray, PrimitiveArray, RecordBatch, StringArray,
    builder::{BooleanBuilder, ListBuilder, PrimitiveBuilder},
    cast::AsArray,
    types::{Float32Type, Float64Type, Int64Type, UInt16Type, UInt32Type, UInt64Type},
};
use arrow_schema::{DataType, Field};

/// A column that is not what the rows need.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column `{column}` {problem}")]
pub struct Mismatch {
    /// The column's name.
    pub column: String,
    /// What is wrong with it.
    pub problem: String,
}

impl Mismatch {
    fn new(column: &str, problem: impl Into<String>) -> Self {
        Self { column: column.to_owned(), problem: problem.into() }
    }
}

/// A type whose values fill a column.
pub trait Column: Sized {
    /// The column's type.
    fn data_type() -> DataType;
    /// Cells to an array.
    fn encode<'a>(cells: impl Iterator<Item = Option<&'a Self>>) -> ArrayRef
    where
        Self: 'a;
    /// One cell of an array of that type; `None` where it is null.
    fn decode(array: &dyn Array, row: usize) -> Option<Self>;
    /// About how many bytes the cell takes.
    fn weight(&self) -> usize {
        size_of::<Self>()
    }
}

macro_rules! primitive {
    ($($native:ty: $arrow:ty),+ $(,)?) => { $(
        impl Column for $native {
            fn data_type() -> DataType {
                <$arrow>::DATA_TYPE
            }
            fn encode<'a>(cells: impl Iterator<Item = Option<&'a Self>>) -> ArrayRef {
                Arc::new(cells.map(Option::<&Self>::copied).collect::<PrimitiveArray<$arrow>>())
            }
            fn decode(array: &dyn Array, row: usize) -> Option<Self> {
                let array = array.as_primitive::<$arrow>();
                array.is_valid(row).then(|| array.value(row))
            }
        }
    )+ };
}
primitive!(u32: UInt32Type, u64: UInt64Type, i64: Int64Type, f64: Float64Type);

macro_rules! list {
    ($($native:ty: $arrow:ty),+ $(,)?) => { $(
        impl Column for Vec<$native> {
            fn data_type() -> DataType {
                DataType::List(Arc::new(Field::new_list_field(<$arrow>::DATA_TYPE, true)))
            }
            fn encode<'a>(cells: impl Iterator<Item = Option<&'a Self>>) -> ArrayRef {
                let mut lists = ListBuilder::new(PrimitiveBuilder::<$arrow>::new());
                for cell in cells {
                    lists.values().append_slice(cell.map_or(&[], Vec::as_slice));
                    lists.append(cell.is_some());
                }
                Arc::new(lists.finish())
            }
            fn decode(array: &dyn Array, row: usize) -> Option<Self> {
                let lists = array.as_list::<i32>();
                let cell = lists.is_valid(row).then(|| lists.value(row))?;
                (cell.null_count() == 0).then(|| cell.as_primitive::<$arrow>().values().to_vec())
            }
            fn weight(&self) -> usize {
                size_of_val(self.as_slice())
            }
        }
    )+ };
}
list!(u16: UInt16Type, f32: Float32Type);

impl Column for bool {
    fn data_type() -> DataType {
        DataType::Boolean
    }
    fn encode<'a>(cells: impl Iterator<Item = Option<&'a Self>>) -> ArrayRef {
        Arc::new(cells.map(Option::<&Self>::copied).collect::<BooleanArray>())
    }
    fn decode(array: &dyn Array, row: usize) -> Option<Self> {
        let array = array.as_boolean();
        array.is_valid(row).then(|| array.value(row))
    }
}

impl Column for Vec<bool> {
    fn data_type() -> DataType {
        DataType::List(Arc::new(Field::new_list_field(DataType::Boolean, true)))
    }
    fn encode<'a>(cells: impl Iterator<Item = Option<&'a Self>>) -> ArrayRef {
        let mut lists = ListBuilder::new(BooleanBuilder::new());
        for cell in cells {
            lists.values().append_slice(cell.map_or(&[], Vec::as_slice));
            lists.append(cell.is_some());
        }
        Arc::new(lists.finish())
    }
    fn decode(array: &dyn Array, row: usize) -> Option<Self> {
        let lists = array.as_list::<i32>();
        let cell = lists.is_valid(row).then(|| lists.value(row))?;
        (cell.null_count() == 0).then(|| cell.as_boolean().values().iter().collect())
    }
    fn weight(&self) -> usize {
        self.len()
    }
}

impl Column for String {
    fn data_type() -> DataType {
        DataType::Utf8
    }
    fn encode<'a>(cells: impl Iterator<Item = Option<&'a Self>>) -> ArrayRef {
        Arc::new(cells.collect::<StringArray>())
    }
    fn decode(array: &dyn Array, row: usize) -> Option<Self> {
        let array = array.as_string::<i32>();
        array.is_valid(row).then(|| array.value(row).to_owned())
    }
    fn weight(&self) -> usize {
        self.len()
    }
}

impl Column for Vec<u8> {
    fn data_type() -> DataType {
        DataType::Binary
    }
    fn encode<'a>(cells: impl Iterator<Item = Option<&'a Self>>) -> ArrayRef {
        Arc::new(cells.collect::<BinaryArray>())
    }
    fn decode(array: &dyn Array, row: usize) -> Option<Self> {
        let array = array.as_binary::<i32>();
        array.is_valid(row).then(|| array.value(row).to_vec())
    }
    fn weight(&self) -> usize {
        self.len()
    }
}

impl<T: Column> Column for Option<T> {
    fn data_type() -> DataType {
        T::data_type()
    }
    fn encode<'a>(cells: impl Iterator<Item = Option<&'a Self>>) -> ArrayRef
    where
        T: 'a,
    {
        T::encode(cells.map(|cell| cell.and_then(Self::as_ref)))
    }
    fn decode(array: &dyn Array, row: usize) -> Option<Self> {
        if array.is_null(row) { Some(None) } else { T::decode(array, row).map(Some) }
    }
    fn weight(&self) -> usize {
        self.as_ref().map_or(0, T::weight)
    }
}

/// The schema's field of a struct's field.
pub fn field<R, T: Column>(name: &str, _get: fn(&R) -> &T) -> Field {
    Field::new(name, T::data_type(), true)
}

/// One field of all rows as a column.
pub fn encode<R, T: Column>(rows: &[R], get: fn(&R) -> &T) -> ArrayRef {
    T::encode(rows.iter().map(|row| Some(get(row))))
}

/// A column of a batch, of the type asked for.
pub fn find<'a>(batch: &'a RecordBatch, name: &str, wanted: &DataType) -> Result<&'a ArrayRef, Mismatch> {
    let column = batch.column_by_name(name);
    check(name, column.map(|column| column.data_type()), wanted)?;
    column.ok_or_else(|| Mismatch::new(name, "is missing"))
}

/// Whether a column is there and of the type asked for.
pub fn check(name: &str, found: Option<&DataType>, wanted: &DataType) -> Result<(), Mismatch> {
    match found {
        None => Err(Mismatch::new(name, "is missing")),
        Some(found) if !found.equals_datatype(wanted) => {
            Err(Mismatch::new(name, format!("holds {found}, not {wanted}")))
        }
        Some(_) => Ok(()),
    }
}

/// A column of a batch as values.
pub fn decode<T: Column>(batch: &RecordBatch, name: &str) -> Result<Vec<T>, Mismatch> {
    cells(name, find(batch, name, &T::data_type())?)
}

/// A column of a batch as values, null where earlier versions did not write it.
pub fn decode_later<T: Column>(batch: &RecordBatch, name: &str) -> Result<Vec<Option<T>>, Mismatch> {
    if batch.column_by_name(name).is_none() {
        return Ok((0..batch.num_rows()).map(|_| None).collect());
    }
    decode(batch, name)
}

/// An array as values; it must have the type's data type.
pub fn cells<T: Column>(name: &str, array: &ArrayRef) -> Result<Vec<T>, Mismatch> {
    let cell = |row| T::decode(array, row).ok_or_else(|| Mismatch::new(name, format!("is null in row {row}")));
    (0..array.len()).map(cell).collect()
}

/// Implements [`crate::Row`] for a struct whose fields are all columns; those after `later` came later.
macro_rules! table {
    ($row:ident, $kind:literal, $($field:ident),+ $(; later $($later:ident),+)? $(,)?) => {
        impl $crate::Row for $row {
            const KIND: &'static str = $kind;
            const LATER: &'static [&'static str] = &[$($(stringify!($later)),+)?];

            fn schema() -> arrow_schema::SchemaRef {
                let fields = vec![
                    $($crate::column::field(stringify!($field), |row: &Self| &row.$field),)+
                    $($($crate::column::field(stringify!($later), |row: &Self| &row.$later),)+)?
                ];
                std::sync::Arc::new(arrow_schema::Schema::new(fields))
            }

            fn encode(rows: &[Self]) -> arrow_array::RecordBatch {
                let columns = vec![
                    $($crate::column::encode(rows, |row| &row.$field),)+
                    $($($crate::column::encode(rows, |row| &row.$later),)+)?
                ];
                $crate::column::batch::<Self>(columns)
            }

            fn decode(batch: &arrow_array::RecordBatch) -> Result<Vec<Self>, $crate::Mismatch> {
                $(let mut $field = $crate::column::decode(batch, stringify!($field))?.into_iter();)+
                $($(let mut $later = $crate::column::decode_later(batch, stringify!($later))?.into_iter();)+)?
                let row = || {
                    Some(Self { $($field: $field.next()?,)+ $($($later: $later.next()?,)+)? })
                };
                Ok(std::iter::from_fn(row).collect())
            }

            fn weight(&self) -> usize {
                0 $(+ $crate::column::Column::weight(&self.$field))+
                    $($(+ $crate::column::Column::weight(&self.$later))+)?
            }
        }
    };
}
pub(crate) use table;

/// Columns to a batch of the row's schema.
pub fn batch<R: crate::Row>(columns: Vec<ArrayRef>) -> RecordBatch {
    RecordBatch::try_new(R::schema(), columns).expect("columns made from one slice of rows fit the rows' own schema")
}
