package serialize

// Cursor goes through the records of a batch in order. It begins before the
// first:
//
//	c := batch.Cursor()
//	for c.Next() {
//		use(c.Value())
//	}
//
// Declare it before the loop, not in its head: a variable of the head is copied
// for every iteration. A cursor belongs to one goroutine; the views it returns
// live as long as the batch's bytes. The accessors may be called after Next
// returned true.
type Cursor struct {
	b       *Batch
	payload []byte
	i, n    int
	simple  bool
	// bounds[k] is where record k of the block begins and bounds[k+1] where it ends.
	bounds [blockRecords + 1]uint32
	// times are the timestamps of block timesOf, which may be an earlier one.
	times   [blockRecords]int64
	timesOf int
}

// Cursor returns a cursor before the first record. The batch must stay in place
// while it is used.
func (b *Batch) Cursor() Cursor {
	return Cursor{b: b, payload: b.payload, i: -1, n: b.n, simple: b.simple, timesOf: -1}
}

// Next moves to the next record; false if there is none.
func (c *Cursor) Next() bool {
	c.i++
	return c.i&(blockRecords-1) != 0 && c.i < c.n || c.fill()
}

// fill decodes the bounds of the block that begins with record i.
func (c *Cursor) fill() bool {
	b, i := c.b, c.i
	if i >= c.n {
		c.i = c.n
		return false
	}
	from := b.checkpoint(i >> blockShift)
	c.bounds[0] = from
	ends := c.bounds[1 : 1+min(blockRecords, c.n-i)]
	if b.simple {
		prefixColumn(ends, b.value.from(i), b.value.width, b.value.min, from)
		return true
	}
	clear(ends)
	addColumn(ends, b.value.from(i), b.value.width)
	addColumn(ends, b.key.from(i), b.key.width)
	addColumn(ends, b.header.from(i), b.header.width)
	for k := range ends {
		from += b.sumMin + ends[k]
		ends[k] = from
	}
	return true
}

// Index is the record's index in the batch.
func (c *Cursor) Index() int { return c.i }

// Value is the record's value; nil for a deletion.
func (c *Cursor) Value() []byte {
	if !c.simple {
		return c.richValue()
	}
	k := c.i & (blockRecords - 1)
	return c.payload[c.bounds[k]:c.bounds[k+1]:c.bounds[k+1]]
}

func (c *Cursor) richValue() []byte { return c.Record().Value }

// Timestamp is the record's timestamp, Unix milliseconds.
func (c *Cursor) Timestamp() int64 {
	if c.i>>blockShift != c.timesOf {
		c.fillTimes()
	}
	return c.times[c.i&(blockRecords-1)]
}

// fillTimes decodes the timestamps of the block that holds record i.
func (c *Cursor) fillTimes() {
	b := c.b
	c.timesOf = c.i >> blockShift
	first := c.timesOf << blockShift
	times := c.times[:min(blockRecords, c.n-first)]
	if !b.steps {
		for k := range times {
			times[k] = b.baseTime + int64(b.time.at64(first+k))
		}
		return
	}
	t := b.baseTime + int64(b.starts.at64(c.timesOf))
	times[0] = t
	for k := 1; k < len(times); k++ {
		t += b.minStep + int64(b.time.at64(first+k))
		times[k] = t
	}
}

// Record is the record.
func (c *Cursor) Record() Record {
	k := c.i & (blockRecords - 1)
	return c.b.record(c.i, c.bounds[k], c.bounds[k+1], c.Timestamp())
}
