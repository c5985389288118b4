// Package shim is the HTTP front for callers of the legacy API: package qcloud on
// one side, BatchTasks on the other. It verifies who calls, turns the call into
// reads and writes of BatchTasks in the caller's account, which is a namespace,
// and answers in the caller's own envelope. Calls about a single device read and
// change its shadow, or send it a message, themselves.
//
// It decides nothing about tasks: the API server, the admission webhook and the
// controllers do, and their refusals are told to the caller by their
// machine-readable causes. It keeps nothing but what protects it: credentials,
// which it watches, the calls seen within the time a signature is good for, and
// the rate of each caller. So replicas need not know of each other.
package shim
