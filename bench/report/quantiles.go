package report

import "github.com/millrace/millrace/bench/measure"

type quantilesOf = measure.Quantiles

// orZero makes an absent summary empty.
func orZero(q *quantilesOf) *quantilesOf {
	if q == nil {
		return &quantilesOf{}
	}
	return q
}
