//! A compiled executor of frozen networks: gradient queries and votes on the CPU
