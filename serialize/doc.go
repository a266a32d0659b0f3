// Package serialize is the compact batch format: many records in one contiguous
// run of bytes, laid out by columns, checked by CRC32C, and read in place.
//
// A Builder copies each record's bytes once, straight to where they stay, and
// lays the columns out behind them when the batch closes. Open checks a batch
// and gives views of its bytes; nothing is copied or allocated. The layout is
// specified byte by byte in docs/BATCH-FORMAT.md.
package serialize
