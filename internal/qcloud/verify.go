package qcloud

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"time"

	"k8s.io/utils/clock"
)

// Defaults of [Options].
const (
	// DefaultWindow is how far a caller's clock may differ from the server's.
	DefaultWindow = 5 * time.Minute
	// DefaultMaxNonces is enough for 100 calls a second of one SecretId over twice
	// the default window.
	DefaultMaxNonces = 1 << 16
	// DefaultService is the service in the scope of the TC3 signature of most clients;
	// any is accepted.
	DefaultService = "iotcloud"
)

// DefaultHosts returns the hosts that clients of V2 and V3 believe they call, and
// sign, wherever they really connect to.
func DefaultHosts() []string {
	return []string{"iotcloud.api.qcloud.com", "iotcloud.tencentcloudapi.com"}
}

// Candidate is a pair of credentials that a call may have been signed with.
type Candidate struct {
	// Account is whose pair it is.
	Account string
	// Name tells the log which pair it is; callers never see it.
	Name string
	// SecretKey signs.
	SecretKey string
}

// Credentials finds the pairs of credentials that have a SecretId. Several accounts may
// have one with the same: anybody can copy a SecretId, and only the key says who calls.
type Credentials interface {
	// Lookup returns the pairs with a SecretId, at most one of an account, the oldest
	// first; none if the SecretId is not known. The first 16 count. It must not block and
	// may be called concurrently.
	Lookup(secretID string) []Candidate
}

// Limiter bounds the rate of calls.
type Limiter interface {
	// Allow reports whether a call of the account may go on, and counts it. It may
	// be called concurrently and must not block.
	Allow(account string) bool
}

// Options are the settings of a [Verifier]. The zero value of each stands for its
// default.
type Options struct {
	// Hosts are the hosts that a call may be signed for, tried in this order, besides
	// the Host of the request; the default is [DefaultHosts].
	Hosts []string
	// Window is how far a Timestamp may differ from the clock, either way, in whole
	// seconds ([DefaultWindow]).
	Window time.Duration
	// MaxNonces is how many calls of one SecretId are remembered to recognise a
	// replay ([DefaultMaxNonces]). See [Verifier].
	MaxNonces int
	// Limiter is asked about calls whose signature is good and that are no replay,
	// so that nobody uses up the rate of another. The default is no limit.
	Limiter Limiter
	// RequireSignedAction refuses calls with TC3 that do not have x-tc-action among their
	// signed headers. Most clients sign no more than Content-Type and Host.
	RequireSignedAction bool
}

// Caller is who makes a call.
type Caller struct {
	// SecretID names the credentials that were used.
	SecretID string
	// Account is the account they belong to.
	Account string
	// Outcome must be settled with what becomes of the call; nil where nobody asks.
	Outcome *Outcome
	// Earlier, unless nil, is the outcome of an equal call that was made before: this one
	// is answered with it and not carried out.
	Earlier *Outcome
}

// Verifier decides whether a call comes from whom it says. It remembers Timestamp and
// Nonce, or with TC3 the signature, of the calls it has accepted for as long as the Timestamp
// is accepted. Only calls with a good signature are remembered, and for each pair of
// credentials at most MaxNonces: then further calls with this pair, and with no
// other, are refused as RateLimited until the oldest have expired. To forget one
// that still counts would let it be replayed; to share one memory would let an
// account shut out the others. So memory is bounded by the number of
// credentials: 2 MB for an account that makes 100 calls a second, and up to 25 MB where all of
// them make or cancel tasks with TC3, whose outcomes are kept.
//
// A call is remembered by the process that saw it, until it ends. A TC3 signature
// has no Nonce, and two equal calls within a second have equal signatures: see
// [Caller.Earlier].
//
// A Verifier may be used concurrently.
type Verifier struct {
	credentials Credentials
	clock       clock.PassiveClock
	options     Options
	seen        *calls
}

// NewVerifier returns a Verifier that finds keys in credentials and the time on clock.
func NewVerifier(credentials Credentials, clock clock.PassiveClock, options Options) *Verifier {
	if options.Hosts == nil {
		options.Hosts = DefaultHosts()
	}
	if options.Window == 0 {
		options.Window = DefaultWindow
	}
	if options.MaxNonces == 0 {
		options.MaxNonces = DefaultMaxNonces
	}
	return &Verifier{credentials: credentials, clock: clock, options: options, seen: newCalls(options.MaxNonces)}
}

// Verify returns who makes the call. Errors are of kind Token, MissingParameter,
// InvalidParameter (Timestamp or Nonce), SecretIDNotFound, SignatureFailure,
// Expired, RateLimited and Replay.
//
// The order matters: only who has the key learns whether a call is too old or was
// seen before, uses up a rate, and makes the server remember anything.
func (v *Verifier) Verify(call *Call) (Caller, error) {
	if call.SecretID == "" {
		return Caller{}, Errorf(KindSignatureFailure, "SecretId", "is missing")
	}
	if call.authorization == nil && call.signature == "" {
		return Caller{}, Errorf(KindSignatureFailure, "Signature", "is missing")
	}
	if call.token != "" {
		return Caller{}, Errorf(KindToken, "Token", "temporary credentials are not supported")
	}
	timestamp, err := parseCommon(call.timestamp, 63)
	if err != nil {
		return Caller{}, err
	}
	var nonce uint64
	if call.authorization == nil {
		if nonce, err = parseCommon(parameter{"Nonce", call.nonce}, 64); err != nil {
			return Caller{}, err
		}
	}
	sent := int64(timestamp) //nolint:gosec // parsed as 63 bits
	account, err := v.whose(call, sent)
	if err != nil {
		return Caller{}, err
	}
	caller := Caller{SecretID: call.SecretID, Account: account}
	m := markOfNonce(nonce)
	if call.authorization != nil {
		m, caller.Outcome = markOfSignature(call.authorization.signature), newOutcome(call.Action)
	}
	if caller.Earlier, err = v.admit(call, caller, sent, m); err != nil {
		return Caller{}, err
	}
	if caller.Earlier != nil {
		caller.Outcome = nil
	}
	return caller, nil
}

// whose returns the account that signed the call.
func (v *Verifier) whose(call *Call, sent int64) (account string, err error) {
	candidates := v.credentials.Lookup(call.SecretID)
	candidates = candidates[:min(len(candidates), maxCandidates)]
	if len(candidates) == 0 {
		return "", Errorf(KindSecretIDNotFound, "SecretId", "is not known")
	}
	if call.authorization != nil {
		if v.options.RequireSignedAction && !slices.Contains(call.authorization.signedHeaders, "x-tc-action") {
			return "", Errorf(KindSignatureFailure, "Authorization", "SignedHeaders must have x-tc-action: this server demands that the action is signed")
		}
		candidates, err = call.verifyTC3(candidates, v.hosts(call), sent)
	} else {
		candidates, err = call.verifyForm(candidates, v.hosts(call))
	}
	switch {
	case err != nil:
		return "", err
	case len(candidates) > 1:
		// Who has the key may know this much, and no more.
		refusal := Errorf(KindSignatureFailure, "SecretId", "is not yours alone, nor is its key: the log of the server names the others")
		refusal.Err = fmt.Errorf("the call is signed with credentials that %s and %s have both: change those of one", candidates[0].Name, candidates[1].Name)
		return "", refusal
	}
	return candidates[0].Account, nil
}

// admit applies what depends on the time. It returns the outcome of an equal call that was
// made before, if this one is to be answered with that.
func (v *Verifier) admit(call *Call, caller Caller, sent int64, m mark) (*Outcome, error) {
	now, window := v.clock.Now().Unix(), int64(v.options.Window/time.Second)
	oldest := now - window
	if sent < oldest || sent > now+window {
		return nil, Errorf(KindExpired, call.timestamp.name, "must be within %d seconds of the server's time, %d", window, now)
	}
	allow := func() error {
		if v.options.Limiter != nil && !v.options.Limiter.Allow(caller.Account) {
			return Errorf(KindRateLimited, "", "slow down")
		}
		return nil
	}
	return v.seen.add(pair{caller.Account, caller.SecretID}, sent, m, caller.Outcome, oldest, allow)
}

// hosts returns the hosts that the call may be signed for.
func (v *Verifier) hosts(call *Call) []string {
	hosts := slices.Clone(v.options.Hosts)
	candidates := []string{call.host}
	// Some clients sign the name alone.
	if name, _, err := net.SplitHostPort(call.host); err == nil {
		candidates = append(candidates, name)
	}
	for _, host := range candidates {
		if host != "" && !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
	}
	return hosts
}

// parseCommon reads a common parameter that is a number without a sign.
func parseCommon(p parameter, bits int) (uint64, error) {
	if p.text == "" {
		return 0, Errorf(KindMissingParameter, p.name, "is missing")
	}
	n, err := strconv.ParseUint(p.text, 10, bits)
	if err != nil {
		return 0, Errorf(KindInvalidParameter, p.name, "must be a number")
	}
	return n, nil
}
