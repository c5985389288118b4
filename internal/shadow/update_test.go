package shadow

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestUpdate(t *testing.T) {
	const (
		old = `{"timestamp":1700000000000}`
		new = `{"timestamp":1700000100500}`
	)
	stored := Stored{
		Reported: `{"a":1,"b":{"c":1,"d":[1]}}`, Desired: `{"a":2}`,
		Metadata: `{"reported":{"a":` + old + `,"b":{"c":` + old + `,"d":` + old + `}},"desired":{"a":` + old + `}}`,
		Version:  7, Timestamp: before,
	}
	changed := func(reported, desired, metadata string) Stored {
		return Stored{Reported: reported, Desired: desired, Metadata: metadata, Version: 8, Timestamp: now}
	}
	tests := map[string]struct {
		stored   Stored
		reported string // "" for nil
		desired  string // "" for nil
		clear    bool
		version  int64
		want     Stored
		wantErr  error
	}{
		"into nothing": {
			reported: `{"state":"open"}`,
			want:     Stored{Reported: `{"state":"open"}`, Metadata: `{"reported":{"state":` + new + `}}`, Version: 1, Timestamp: now},
		},
		"null deletes, other leaves keep their time": {
			stored: stored, reported: `{"a":null,"b":{"c":2}}`,
			want: changed(`{"b":{"c":2,"d":[1]}}`, `{"a":2}`, `{"reported":{"b":{"c":`+new+`,"d":`+old+`}},"desired":{"a":`+old+`}}`),
		},
		"equal values: the version grows all the same": {
			stored: stored, reported: `{"a":1.0}`,
			want: changed(stored.Reported, stored.Desired, stored.Metadata),
		},
		"empty report": {
			stored: stored, reported: `{}`,
			want: changed(stored.Reported, stored.Desired, stored.Metadata),
		},
		"the acknowledgement clears the desired part": {
			stored: stored, clear: true,
			want: changed(stored.Reported, ``, `{"reported":{"a":`+old+`,"b":{"c":`+old+`,"d":`+old+`}}}`),
		},
		"report and acknowledgement are one step": {
			stored: stored, reported: `{"a":2,"b":null}`, clear: true, version: 7,
			want: changed(`{"a":2}`, ``, `{"reported":{"a":`+new+`}}`),
		},
		"the last version there is": {
			stored: Stored{Version: math.MaxInt64}, reported: `{"a":1}`,
			wantErr: ErrLastVersion, want: Stored{Version: math.MaxInt64},
		},
		"nothing to clear": {
			stored: Stored{Version: 7}, clear: true,
			want: changed(``, ``, ``),
		},
		"an application's update": {
			stored: stored, desired: `{"a":null,"e":1}`, version: 7,
			want: changed(stored.Reported, `{"e":1}`, `{"reported":{"a":`+old+`,"b":{"c":`+old+`,"d":`+old+`}},"desired":{"e":`+new+`}}`),
		},
		"older version":              {stored: stored, reported: `{"a":2}`, version: 6, wantErr: ErrVersion},
		"newer version":              {stored: stored, reported: `{"a":2}`, clear: true, version: 8, wantErr: ErrVersion},
		"first update has a version": {reported: `{"a":2}`, version: 1, wantErr: ErrVersion},
		"too large together": {
			stored: Stored{Reported: `{"a":"` + strings.Repeat("x", 16000) + `"}`, Version: 7}, reported: `{"b":"` + strings.Repeat("x", 1000) + `"}`, clear: true,
			wantErr: ErrTooLarge,
		},
		"too deep": {
			stored: Stored{Reported: `{"a":{"b":{"c":{"d":{"e":{}}}}}}`, Version: 7}, reported: `{"b":1}`, wantErr: ErrTooDeep,
		},
		"desired too large, reported is left alone too": {
			stored:   Stored{Desired: `{"a":"` + strings.Repeat("x", 16000) + `"}`, Version: 7},
			reported: `{"b":1}`, desired: `{"b":"` + strings.Repeat("x", 1000) + `"}`, wantErr: ErrTooLarge,
		},
		"limits are each part's own": {
			stored:   Stored{Desired: `{"a":"` + strings.Repeat("x", 16000) + `"}`, Version: 7},
			reported: `{"b":"` + strings.Repeat("y", 16000) + `"}`,
			want: changed(`{"b":"`+strings.Repeat("y", 16000)+`"}`, `{"a":"`+strings.Repeat("x", 16000)+`"}`,
				`{"reported":{"b":`+new+`}}`),
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			u := Update{ClearDesired: tt.clear, Version: tt.version}
			if tt.reported != "" {
				u.Reported = mustPatch(t, tt.reported)
			}
			if tt.desired != "" {
				u.Desired = mustPatch(t, tt.desired)
			}
			doc := mustParse(t, tt.stored)
			want := tt.want
			if tt.wantErr != nil {
				want = tt.stored
			}
			if err := doc.Update(u, time.UnixMilli(now)); !errors.Is(err, tt.wantErr) {
				t.Fatalf("error %v, want %v", err, tt.wantErr)
			}
			if diff := cmp.Diff(want, doc.Stored()); diff != "" {
				t.Errorf("stored (-want +got):\n%s", diff)
			}
		})
	}
}
