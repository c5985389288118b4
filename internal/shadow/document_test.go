package shadow

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Times in these tests are Unix milliseconds.
const (
	before = 1700000000000
	now    = 1700000100500
)

func mustParse(t testing.TB, s Stored) *Document {
	t.Helper()
	doc, err := Parse(s)
	if err != nil {
		t.Fatalf("parsing %+v: %v", s, err)
	}
	return doc
}

func mustPatch(t testing.TB, text string) Object {
	t.Helper()
	patch, err := ParseDesired(text)
	if err != nil {
		t.Fatalf("parsing the patch %s: %v", text, err)
	}
	return patch
}

func TestMergeDesired(t *testing.T) {
	const (
		old = `{"timestamp":1700000000000}`
		new = `{"timestamp":1700000100500}`
	)
	meta := func(desired string) string { return `{"desired":` + desired + `}` }
	tests := map[string]struct {
		desired, metadata string
		patch             string
		wantDesired       string
		wantMetadata      string
		wantChanged       bool
	}{
		"into nothing": {
			patch:       `{"state":"open"}`,
			wantDesired: `{"state":"open"}`, wantMetadata: meta(`{"state":` + new + `}`), wantChanged: true,
		},
		"nested, other leaves keep their time": {
			desired: `{"a":{"b":1,"c":2},"d":3}`, metadata: meta(`{"a":{"b":` + old + `,"c":` + old + `},"d":` + old + `}`),
			patch:       `{"a":{"c":5}}`,
			wantDesired: `{"a":{"b":1,"c":5},"d":3}`, wantMetadata: meta(`{"a":{"b":` + old + `,"c":` + new + `},"d":` + old + `}`), wantChanged: true,
		},
		"null deletes": {
			desired: `{"a":1,"b":{"c":1,"d":2}}`, metadata: meta(`{"a":` + old + `,"b":{"c":` + old + `,"d":` + old + `}}`),
			patch:       `{"a":null,"b":{"d":null}}`,
			wantDesired: `{"b":{"c":1}}`, wantMetadata: meta(`{"b":{"c":` + old + `}}`), wantChanged: true,
		},
		"null deletes an object": {
			desired: `{"a":1,"b":{"c":1}}`, metadata: meta(`{"a":` + old + `,"b":{"c":` + old + `}}`),
			patch:       `{"b":null}`,
			wantDesired: `{"a":1}`, wantMetadata: meta(`{"a":` + old + `}`), wantChanged: true,
		},
		"the last field goes": {
			desired: `{"a":1}`, metadata: meta(`{"a":` + old + `}`),
			patch:       `{"a":null}`,
			wantChanged: true,
		},
		"the last field inside goes: an empty object is a leaf": {
			desired: `{"a":{"b":1}}`, metadata: meta(`{"a":{"b":` + old + `}}`),
			patch:       `{"a":{"b":null}}`,
			wantDesired: `{"a":{}}`, wantMetadata: meta(`{"a":` + new + `}`), wantChanged: true,
		},
		"an empty object gets a field": {
			desired: `{"a":{}}`, metadata: meta(`{"a":` + old + `}`),
			patch:       `{"a":{"b":1}}`,
			wantDesired: `{"a":{"b":1}}`, wantMetadata: meta(`{"a":{"b":` + new + `}}`), wantChanged: true,
		},
		"arrays are replaced whole": {
			desired: `{"a":[1,2,3]}`, metadata: meta(`{"a":` + old + `}`),
			patch:       `{"a":[3,null,{"b":null}]}`,
			wantDesired: `{"a":[3,null,{"b":null}]}`, wantMetadata: meta(`{"a":` + new + `}`), wantChanged: true,
		},
		"object for value and value for object": {
			desired: `{"a":1,"b":{"c":1}}`, metadata: meta(`{"a":` + old + `,"b":{"c":` + old + `}}`),
			patch:       `{"a":{"x":1},"b":2}`,
			wantDesired: `{"a":{"x":1},"b":2}`, wantMetadata: meta(`{"a":{"x":` + new + `},"b":` + new + `}`), wantChanged: true,
		},
		"equal values": {
			desired: `{"a":1,"b":{"c":[1,{"d":2}]},"e":{}}`, metadata: meta(`{"a":` + old + `,"b":{"c":` + old + `},"e":` + old + `}`),
			patch:       `{"a":1.0,"b":{"c":[1e0,{"d":2}]},"e":{},"gone":null}`,
			wantDesired: `{"a":1,"b":{"c":[1,{"d":2}]},"e":{}}`, wantMetadata: meta(`{"a":` + old + `,"b":{"c":` + old + `},"e":` + old + `}`),
		},
		"empty patch": {
			desired: `{"a":1}`, metadata: meta(`{"a":` + old + `}`),
			patch:       `{}`,
			wantDesired: `{"a":1}`, wantMetadata: meta(`{"a":` + old + `}`),
		},
		"empty patch into nothing": {patch: `{}`},
		"a field named timestamp": {
			desired: `{"timestamp":1}`, metadata: meta(`{"timestamp":` + old + `}`),
			patch:       `{"timestamp":{"timestamp":2}}`,
			wantDesired: `{"timestamp":{"timestamp":2}}`, wantMetadata: meta(`{"timestamp":{"timestamp":` + new + `}}`), wantChanged: true,
		},
		"characters of HTML, long numbers": {
			patch:       `{"a":"<&>","b":123456789012345678901234567890}`,
			wantDesired: `{"a":"<&>","b":123456789012345678901234567890}`, wantMetadata: meta(`{"a":` + new + `,"b":` + new + `}`), wantChanged: true,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			doc := mustParse(t, Stored{Desired: tt.desired, Metadata: tt.metadata, Reported: `{"r":1}`, Version: 7, Timestamp: before})
			changed, err := doc.MergeDesired(mustPatch(t, tt.patch), time.UnixMilli(now))
			if err != nil {
				t.Fatal(err)
			}
			if changed != tt.wantChanged {
				t.Errorf("changed %v, want %v", changed, tt.wantChanged)
			}
			want := Stored{Desired: tt.wantDesired, Metadata: tt.wantMetadata, Reported: `{"r":1}`, Version: 8, Timestamp: now}
			if diff := cmp.Diff(want, doc.Stored()); diff != "" {
				t.Errorf("stored (-want +got):\n%s", diff)
			}
		})
	}
}

// The samples are those of RFC 7396, appendix A, that patch an object with an object.
func TestMergeDesiredFollowsRFC7396(t *testing.T) {
	tests := []struct{ state, patch, want string }{
		{`{"a":"b"}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"b"}`, `{"b":"c"}`, `{"a":"b","b":"c"}`},
		{`{"a":"b"}`, `{"a":null}`, ``},
		{`{"a":"b","b":"c"}`, `{"a":null}`, `{"b":"c"}`},
		{`{"a":["b"]}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"c"}`, `{"a":["b"]}`, `{"a":["b"]}`},
		{`{"a":{"b":"c"}}`, `{"a":{"b":"d","c":null}}`, `{"a":{"b":"d"}}`},
		{`{"a":[{"b":"c"}]}`, `{"a":[1]}`, `{"a":[1]}`},
		{`{"e":null}`, `{"a":1}`, `{"a":1,"e":null}`},
		{``, `{"a":{"bb":{"ccc":null}}}`, `{"a":{"bb":{}}}`},
	}
	for _, tt := range tests {
		t.Run(tt.state+tt.patch, func(t *testing.T) {
			doc := mustParse(t, Stored{Desired: tt.state})
			if _, err := doc.MergeDesired(mustPatch(t, tt.patch), time.UnixMilli(now)); err != nil {
				t.Fatal(err)
			}
			if got := doc.Stored().Desired; got != tt.want {
				t.Errorf("desired %s, want %s", got, tt.want)
			}
		})
	}
}

func TestMergeDesiredOverTheLimits(t *testing.T) {
	long := strings.Repeat("x", 9000)
	tests := map[string]struct {
		desired, patch string
		wantErr        error
		wantMessage    string
	}{
		"too large": {
			desired: `{"a":"` + long + `"}`, patch: `{"b":"` + long + `"}`,
			wantErr: ErrTooLarge, wantMessage: "merging the desired state: larger than 16384 bytes: it would have 18015 bytes",
		},
		"stored too deep": {
			desired: `{"a":{"b":{"c":{"d":{"e":[]}}}}}`, patch: `{"b":1}`,
			wantErr: ErrTooDeep, wantMessage: "merging the desired state: more than 5 levels deep at a.b.c.d.e",
		},
		"stored too deep and repaired": {desired: `{"a":{"b":{"c":{"d":{"e":[]}}}}}`, patch: `{"a":1}`},
		"room is made first":           {desired: `{"a":"` + long + `"}`, patch: `{"a":null,"b":"` + long + `"}`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			stored := Stored{Desired: tt.desired, Version: 3, Timestamp: before}
			doc := mustParse(t, stored)
			_, err := doc.MergeDesired(mustPatch(t, tt.patch), time.UnixMilli(now))
			if !errors.Is(err, tt.wantErr) {
				t.Fatalf("error %v, want %v", err, tt.wantErr)
			}
			if tt.wantErr == nil {
				return
			}
			if diff := cmp.Diff(tt.wantMessage, err.Error()); diff != "" {
				t.Errorf("message (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(stored, doc.Stored()); diff != "" {
				t.Errorf("document changed by a refused merge (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseAndStored(t *testing.T) {
	tests := map[string]struct {
		stored  Stored
		want    Stored
		wantErr error
	}{
		"nothing": {},
		"all": {
			stored: Stored{Reported: `{ "b":1, "a":2.0 }`, Desired: `{"b":2}`, Metadata: `{"reported":{"b":{"timestamp":1},"a":{"timestamp":2}},"desired":{"b":{"timestamp":3}},"more":1}`, Version: 4, Timestamp: 5},
			want:   Stored{Reported: `{"a":2.0,"b":1}`, Desired: `{"b":2}`, Metadata: `{"reported":{"a":{"timestamp":2},"b":{"timestamp":1}},"desired":{"b":{"timestamp":3}}}`, Version: 4, Timestamp: 5},
		},
		"empty objects are nothing": {stored: Stored{Reported: `{}`, Desired: `{}`, Metadata: `{}`, Version: 1}, want: Stored{Version: 1}},
		"over today's limits":       {stored: Stored{Reported: `{"a":[[[[[[1]]]]]]}`}, want: Stored{Reported: `{"a":[[[[[[1]]]]]]}`}},
		"reported is no JSON":       {stored: Stored{Reported: `{`}, wantErr: ErrNotJSON},
		"desired is no object":      {stored: Stored{Desired: `[]`}, wantErr: ErrNotObject},
		"metadata is no object":     {stored: Stored{Metadata: `1`}, wantErr: ErrNotObject},
		"duplicate key":             {stored: Stored{Reported: `{"a":1,"a":2}`}, wantErr: ErrIllegalKey},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			doc, err := Parse(tt.stored)
			if !errors.Is(err, tt.wantErr) {
				t.Fatalf("error %v, want %v", err, tt.wantErr)
			}
			if err != nil {
				return
			}
			if diff := cmp.Diff(tt.want, doc.Stored()); diff != "" {
				t.Errorf("stored again (-want +got):\n%s", diff)
			}
		})
	}
}

// One patch is merged into many documents at once, so merging must not touch it;
// go test -race sees it if it does.
func TestPatchIsShared(t *testing.T) {
	const text = `{"a":{"b":[{"c":1}],"d":{}},"e":null}`
	patch := mustPatch(t, text)
	for i := range 8 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			doc := mustParse(t, Stored{Desired: `{"a":{"b":1},"e":2}`})
			for _, p := range []Object{patch, {"a": Object{"d": Object{"x": "y"}}}, patch} {
				if _, err := doc.MergeDesired(p, time.UnixMilli(now)); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
	t.Cleanup(func() {
		if diff := cmp.Diff(mustPatch(t, text), patch); diff != "" {
			t.Errorf("the patch was changed (-want +got):\n%s", diff)
		}
	})
}
