// Package seglog is the storage under the broker: append-only logs of batches in
// segment files.
//
// A Store is one data directory, locked by one process:
//
//	DIR/LOCK                                   flock(2)ed, holds the owner's pid
//	DIR/topics/NAME/0/00000000000000000000.seg partition 0; named by first offset
//
// A segment is a header of 24 bytes and then entries back to back, all integers
// little-endian:
//
//	segment header         entry
//	0  "MLSG"              0  "MLRE"
//	4  version u16: 1      4  payload bytes u32
//	6  0 u16               8  base offset u64
//	8  first offset u64    16 records u32
//	16 0 u32               20 CRC32C of the payload u32
//	20 CRC32C of 0…19      24 CRC32C of bytes 0…23 u32
//	                       28 payload: one batch, as it was received
//
// The entry header has a CRC of its own so that its length can be trusted where
// the payload is not whole: an interrupted write then shows as an entry that the
// file is too short for, and needs no guessing.
//
// What is acknowledged when is the Durability of a log. What recovery does with
// damage: an unfinished write at the end of the last segment is cut off and
// reported (Log.Recovery); damage anywhere else refuses to open with a
// *CorruptError, because cutting there would silently drop acknowledged records.
package seglog
