package main

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
)

// figure is one line of the result.
type figure struct {
	Case string `json:"case"`
	// Value is 0 where it was not measured.
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	// Limit is what was measured beside it, in the same unit, by LimitIs; 0 where there
	// is none. Ratio is Value over Limit.
	Limit   float64 `json:"limit,omitempty"`
	LimitIs string  `json:"limitIs,omitempty"`
	Ratio   float64 `json:"ratio,omitempty"`
	Aim     *aim    `json:"aim,omitempty"`
	// NotMeasured says why Value or Limit is missing.
	NotMeasured string `json:"notMeasured,omitempty"`
}

// newFigure returns a figure of a rate, a time or a size, all of which are above 0.
func newFigure(name, unit string, measured reading) figure {
	f := figure{Case: name, Unit: unit}
	if f.keep("measured", measured) {
		f.Value = measured.value
	}
	return f
}

// newDifference returns a figure of how many milliseconds more one time is than another,
// which may be 0 or less.
func newDifference(name string, more, less reading) figure {
	f := figure{Case: name, Unit: "ms"}
	if f.keep("measured", more) && f.keep("subtracted", less) {
		f.Value = more.value - less.value
	}
	return f
}

// beside returns f with the limit.
func (f figure) beside(limit reading, limitIs string) figure {
	f.LimitIs = limitIs
	if f.keep("limit", limit) {
		f.Limit = limit.value
	}
	if f.NotMeasured == "" {
		f.Ratio = f.Value / f.Limit
	}
	return f
}

// aiming returns f with an aim.
func (f figure) aiming(a *aim) figure {
	f.Aim = a
	return f
}

// keep reports whether r is there, and notes why it is not.
func (f *figure) keep(what string, r reading) bool {
	err := r.err
	if err == nil {
		err = checkMeasured(r.value)
	}
	if err == nil {
		return true
	}
	if f.NotMeasured != "" {
		f.NotMeasured += "; "
	}
	f.NotMeasured += what + ": " + strings.ReplaceAll(err.Error(), "\n", "; ")
	return false
}

// value and ratio are readings for what is derived from f.
func (f figure) value() reading { return f.part(f.Value) }
func (f figure) ratio() reading { return f.part(f.Ratio) }

func (f figure) part(value float64) reading {
	if f.NotMeasured != "" {
		return reading{err: fmt.Errorf("%s: %s", f.Case, f.NotMeasured)}
	}
	return reading{value: value, err: checkMeasured(value)}
}

// compared is what an aim compares.
type compared string

const (
	ofRatio compared = "ratio"
	ofValue compared = "value"
)

// direction says which side of a bound is good.
type direction string

const (
	atLeast direction = ">="
	atMost  direction = "<="
)

// aim is what a figure shall reach. The bound itself reaches it.
type aim struct {
	Of        compared  `json:"of"`
	Direction direction `json:"direction"`
	Bound     float64   `json:"bound"`
}

func (a aim) String() string { return fmt.Sprintf("%s %s %g", a.Of, a.Direction, a.Bound) }

// verdict is what has become of an aim. There are three, so that what was not measured
// is neither of the others.
type verdict string

const (
	met         verdict = "met"
	missed      verdict = "missed"
	notMeasured verdict = "not measured"
)

// verdict is empty where there is no aim, unless something is missing.
func (f figure) verdict() verdict {
	if f.NotMeasured != "" {
		return notMeasured
	}
	if f.Aim == nil {
		return ""
	}
	got := f.Value
	if f.Aim.Of == ofRatio {
		got = f.Ratio
		if checkMeasured(got) != nil {
			return notMeasured // there is no limit
		}
	}
	if math.IsNaN(got) || math.IsInf(got, 0) {
		return notMeasured
	}
	if f.Aim.Direction == atLeast && got >= f.Aim.Bound || f.Aim.Direction == atMost && got <= f.Aim.Bound {
		return met
	}
	return missed
}

// MarshalJSON adds the verdict.
func (f figure) MarshalJSON() ([]byte, error) {
	type fields figure
	return json.Marshal(struct {
		fields
		Verdict verdict `json:"verdict,omitempty"`
	}{fields(f), f.verdict()})
}
