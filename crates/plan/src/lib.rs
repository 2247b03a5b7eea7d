//! Pipeline files to cells, jobs and one Make fragment
