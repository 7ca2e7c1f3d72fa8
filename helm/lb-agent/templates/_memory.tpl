{{/* SPDX-License-Identifier: MIT OR Apache-2.0 */}}
{{/*
What the agent needs, in bytes. From Linux 5.11 on the maps count for the pod that makes them. The sizes of
entries are those of lb-common/README.md, "Bytes"; a bucket is 16 bytes, and there are at most two for each entry.
*/}}
{{- define "lb-agent.memory.bytes" -}}
{{- $connections := .Values.config.connectionsMax | default 262144 | int64 -}}
{{- $halfOpen := .Values.config.halfOpenMax | default 65536 | int64 -}}
{{- $affinities := .Values.config.affinityMax | default 65536 | int64 -}}
{{- $services := .Values.memory.services | int64 -}}
{{/* An entry of CONNS_V4 or HALF_OPEN_V4 (128) and one of V6 (168), and buckets for both. */}}
{{- $flows := mul (add 128 168 64) (add $connections $halfOpen) -}}
{{/* The same of AFFINITY_V4 (72) and AFFINITY_V6 (88). */}}
{{- $clients := mul (add 72 88 64) $affinities -}}
{{/* Maps of one size: buckets of what grows, cursors, counters, sockets, prefixes, stamps. */}}
{{- $fixed := mul 64 1024 1024 -}}
{{/* Frontends, slots and backends of both families; twice, as a map that grows is there twice meanwhile. */}}
{{- $planned := mul 2 1040 $services -}}
{{/* The process: itself, 8 KiB for what it knows of each Service, and 20 bytes for each entry of CONNS_*, whose packets it sums up. */}}
{{- $process := add (mul 32 1024 1024) (mul 8192 $services) (mul 2 20 $connections) -}}
{{ add $flows $clients $fixed $planned $process }}
{{- end -}}

{{/* The sum in whole MiB. */}}
{{- define "lb-agent.memory.request" -}}
{{ printf "%dMi" (div (add (include "lb-agent.memory.bytes" . | int64) 1048575) 1048576) }}
{{- end -}}

{{- define "lb-agent.memory.limit" -}}
{{- $percent := add 100 (.Values.memory.headroomPercent | int64) -}}
{{- $bytes := div (mul (include "lb-agent.memory.bytes" . | int64) $percent) 100 -}}
{{ printf "%dMi" (div (add $bytes 1048575) 1048576) }}
{{- end -}}
